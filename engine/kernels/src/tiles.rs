//! The tile registers of AMX: their shapes, and giving them up.
//!
//! A kernel should use as few as it can, though there are eight: while the other hyper-thread of a core is busy, a thread has, by all
//! timings, about ten registers to rename them to, those in use among them, and every instruction that writes a tile waits for a free
//! one. With eight in use no two of them overlap; products with four take little more than half the time then (`benches/README.md`,
//! "With AMX").

use std::arch::asm;

/// Most rows of a tile register.
pub(crate) const ROWS: usize = 16;
/// Most bytes of a row of a tile register.
pub(crate) const LINE: usize = 64;

/// The shape of one tile register.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// At most [`ROWS`].
    pub(crate) rows: usize,
    /// At most [`LINE`].
    pub(crate) bytes_per_row: usize,
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// The first tile registers, at most eight.
    const fn of(shapes: &[Shape]) -> TileConfig {
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        assert!(shapes.len() <= 8, "too many tile registers");
        let mut index = 0;
        while index < shapes.len() {
            let Shape { rows, bytes_per_row } = shapes[index];
            assert!(rows <= ROWS && bytes_per_row <= LINE, "shape of a tile register");
            (config.rows[index], config.bytes_per_row[index]) = (rows as u8, bytes_per_row as u16);
            index += 1;
        }
        config
    }

    /// Only for code that runs where the system lets the process use tile registers.
    #[inline]
    fn load(&self) {
        // SAFETY: code for AMX is chosen only where the system lets this process use tile registers; the configuration is valid.
        unsafe { asm!("ldtilecfg [{config}]", config = in(reg) &raw const *self, options(nostack, readonly)) };
    }
}

/// Configures the first tile registers of this thread, at most eight. Only for code that runs where the system lets the process use
/// them.
pub(crate) fn configure(shapes: &[Shape]) {
    TileConfig::of(shapes).load();
}

/// Configures the first four tile registers of this thread to be whole, as [`configure`].
#[inline]
pub(crate) fn configure_whole() {
    static WHOLE: TileConfig = TileConfig::of(&[Shape { rows: ROWS, bytes_per_row: LINE }; 4]);
    WHOLE.load();
}

/// The first four tile registers of this thread, whole; gives them up when it goes, even if a task panics.
pub(crate) struct Configured(());

impl Configured {
    /// As [`configure`].
    pub(crate) fn whole() -> Configured {
        configure_whole();
        Configured(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        release();
    }
}

/// Gives the tile registers up, so that a switch of threads need not save them.
pub(crate) fn release() {
    // SAFETY: as in `configure`; nothing is in the tile registers that is still needed.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}
