//! Test only: runs AMX's tile instructions on processors that lack them, which raise SIGILL for each.
//!
//! The signal's handler decodes the instruction, does what the manual says to a set of tile registers of its own, and
//! goes on behind it. Only the forms that the kernels use are there: another one ends the process.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;

use crate::Isa;

/// Rows of a tile register.
const ROWS: usize = 16;
/// Bytes of a row of a tile register.
const LINE: usize = 64;

/// A tile register and its configured shape.
#[derive(Clone, Copy)]
struct Register {
    rows: usize,
    bytes_per_row: usize,
    data: [[u8; LINE]; ROWS],
}

const EMPTY: Register = Register { rows: 0, bytes_per_row: 0, data: [[0; LINE]; ROWS] };

struct Registers(UnsafeCell<[Register; 8]>);

// SAFETY: only the thread that holds `TURN` runs tile instructions, and so the handler.
unsafe impl Sync for Registers {}

static REGISTERS: Registers = Registers(UnsafeCell::new([EMPTY; 8]));
static TURN: Mutex<()> = Mutex::new(());

/// Lets the code that it runs use tile registers, the processor's or emulated ones.
pub(crate) struct TileEmulator {
    _turn: MutexGuard<'static, ()>,
    before: Option<libc::sigaction>,
}

impl TileEmulator {
    /// Waits for its turn: one at a time.
    pub(crate) fn install() -> TileEmulator {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if Isa::Amx.is_available() {
            return TileEmulator { _turn: turn, before: None };
        }
        // SAFETY: zeros are a valid `sigaction`, whose fields are then set.
        let before = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal_instruction as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            let mut before: libc::sigaction = std::mem::zeroed();
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, &raw mut before), 0);
            before
        };
        TileEmulator { _turn: turn, before: Some(before) }
    }

    /// Runs code that uses tile registers on this thread.
    pub(crate) fn run<R>(&self, code: impl FnOnce() -> R) -> R {
        code()
    }
}

impl Drop for TileEmulator {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: what was there before is put back.
            unsafe { libc::sigaction(libc::SIGILL, before, std::ptr::null_mut()) };
        }
    }
}

extern "C" fn on_illegal_instruction(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of the thread that it interrupted, which holds `TURN`.
    let (registers, context) =
        unsafe { (&mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs, &mut *REGISTERS.0.get()) };
    if step(registers, context).is_none() {
        // SAFETY: ends the process; an instruction that is not one of these cannot be gone on from.
        unsafe { libc::abort() };
    }
}

/// The general registers in the order of their numbers in an instruction.
const GENERAL: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// An instruction of the VEX map 0F38, decoded as far as all of them are alike.
struct Instruction {
    /// 0 none, 1 `66`, 2 `F3`, 3 `F2`.
    prefix: u8,
    opcode: u8,
    /// The register that VEX names.
    vex: usize,
    reg: usize,
    /// The register operand, or the address and the stride that a memory operand gives.
    operand: Operand,
}

enum Operand {
    Register(usize),
    Memory { address: usize, stride: usize },
}

/// Does one instruction and moves behind it; `None` where it is none of the known ones.
fn step(general: &mut [libc::greg_t; 23], tiles: &mut [Register; 8]) -> Option<()> {
    let code = general[libc::REG_RIP as usize] as *const u8;
    let (instruction, len) = decode(code, general)?;
    execute(&instruction, tiles)?;
    general[libc::REG_RIP as usize] += len as libc::greg_t;
    Some(())
}

fn decode(code: *const u8, general: &[libc::greg_t; 23]) -> Option<(Instruction, usize)> {
    // SAFETY: the processor has read an instruction here; no known one is longer than ten bytes, and none ends a page of code.
    let byte = |at: usize| unsafe { *code.add(at) };
    let general = |number: usize| general[GENERAL[number] as usize] as usize;
    if byte(0) != 0xC4 || byte(1) & 0x1F != 2 {
        return None;
    }
    let extend = |bit: u8| usize::from(!byte(1) >> bit & 1) << 3;
    let (modrm, mut len) = (byte(4), 5);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let operand = if mode == 3 {
        Operand::Register(rm)
    } else {
        let (base, stride) = if rm == 4 {
            let sib = byte(len);
            len += 1;
            let index = usize::from(sib >> 3 & 7) | extend(6);
            let stride = if index == 4 { 0 } else { general(index) << (sib >> 6) };
            (usize::from(sib & 7) | extend(5), stride)
        } else {
            (rm | extend(5), 0)
        };
        let displacement = match mode {
            0 if base & 7 == 5 => return None,
            0 => 0,
            1 => isize::from(byte(len) as i8),
            _ => i32::from_le_bytes([byte(len), byte(len + 1), byte(len + 2), byte(len + 3)]) as isize,
        };
        len += [0, 1, 4][usize::from(mode)];
        Operand::Memory { address: general(base).wrapping_add_signed(displacement), stride }
    };
    let vex = usize::from(!byte(2) >> 3 & 0xF);
    Some((Instruction { prefix: byte(2) & 3, opcode: byte(3), vex, reg, operand }, len))
}

fn execute(instruction: &Instruction, tiles: &mut [Register; 8]) -> Option<()> {
    let Instruction { prefix, opcode, vex, reg, .. } = *instruction;
    match (opcode, prefix, &instruction.operand) {
        (0x49, 0, &Operand::Memory { address, .. }) => load_config(address, tiles)?,
        (0x49, 0, Operand::Register(_)) => *tiles = [EMPTY; 8],
        (0x49, 3, Operand::Register(_)) => tiles[reg].data = EMPTY.data,
        (0x4B, 1 | 3, &Operand::Memory { address, stride }) => load(&mut tiles[reg], address, stride),
        (0x4B, 2, &Operand::Memory { address, stride }) => store(&tiles[reg], address, stride),
        (0x5E, _, &Operand::Register(a)) => {
            let signs = (prefix >= 2, prefix & 1 == 1);
            multiply(tiles, (reg, a, vex), |a, b, sum| {
                let terms = a.iter().zip(b).map(|(&a, b)| integer(a, signs.0) * integer(b, signs.1));
                terms.sum::<i32>().wrapping_add(i32::from_le_bytes(sum)).to_le_bytes()
            })?;
        }
        (0x5C, 2, &Operand::Register(a)) => multiply(tiles, (reg, a, vex), |a, b, sum| {
            let value = |pair: &[u8; 4], i: usize| bf16::from_le_bytes([pair[2 * i], pair[2 * i + 1]]).to_f32();
            // The processor adds up the even and the odd terms of all pairs apart, so its last bits may be others.
            let sum = value(&a, 0).mul_add(value(&b, 0), f32::from_le_bytes(sum));
            value(&a, 1).mul_add(value(&b, 1), sum).to_le_bytes()
        })?,
        _ => return None,
    }
    Some(())
}

fn integer(byte: u8, is_signed: bool) -> i32 {
    if is_signed { i32::from(byte as i8) } else { i32::from(byte) }
}

fn load_config(address: usize, tiles: &mut [Register; 8]) -> Option<()> {
    // SAFETY: the instruction reads 64 bytes here.
    let config = unsafe { *(address as *const [u8; 64]) };
    if config[0] != 1 {
        return None;
    }
    for (i, tile) in tiles.iter_mut().enumerate() {
        *tile = EMPTY;
        tile.bytes_per_row = usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
        tile.rows = usize::from(config[48 + i]);
        if tile.rows > ROWS || tile.bytes_per_row > LINE {
            return None;
        }
    }
    Some(())
}

fn load(tile: &mut Register, address: usize, stride: usize) {
    tile.data = EMPTY.data;
    for (row, data) in tile.data[..tile.rows].iter_mut().enumerate() {
        let from = address.wrapping_add(row * stride) as *const u8;
        // SAFETY: the instruction reads these bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), tile.bytes_per_row) };
    }
}

fn store(tile: &Register, address: usize, stride: usize) {
    for (row, data) in tile.data[..tile.rows].iter().enumerate() {
        let to = address.wrapping_add(row * stride) as *mut u8;
        // SAFETY: the instruction writes these bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, tile.bytes_per_row) };
    }
}

/// `sum += a b` with one step for four bytes of each factor; `None` where the shapes do not fit, which the processor refuses.
fn multiply(
    tiles: &mut [Register; 8],
    (sum, a, b): (usize, usize, usize),
    step: impl Fn([u8; 4], [u8; 4], [u8; 4]) -> [u8; 4],
) -> Option<()> {
    let (a, b, out) = (tiles[a], tiles[b], &mut tiles[sum]);
    let fits = a.bytes_per_row == b.rows * 4 && out.rows == a.rows && out.bytes_per_row == b.bytes_per_row;
    if !fits || out.rows == 0 {
        return None;
    }
    let four = |row: &[u8; LINE], at: usize| [row[4 * at], row[4 * at + 1], row[4 * at + 2], row[4 * at + 3]];
    for (a, out) in a.data.iter().zip(&mut out.data[..a.rows]) {
        for (k, b) in b.data[..b.rows].iter().enumerate() {
            for col in 0..out.len() / 4 {
                let total = step(four(a, k), four(b, col), four(out, col));
                out[4 * col..4 * col + 4].copy_from_slice(&total);
            }
        }
    }
    Some(())
}
