//! Which instruction set the kernels use.

use std::fmt;

use crate::KernelsError;

/// The environment variable that overrides detection.
const OVERRIDE: &str = "BESPOKE_KERNELS";

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust: the reference, on every processor.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI: Intel since 2019, AMD since 2022.
    Avx512,
    /// AVX-512 with BF16 and the tile registers of AMX: Intel since 2023, where the system allows them. Always for bf16; for integers where
    /// they are measured to be clearly faster than AVX-512, at the first use in a process: the bits are the same.
    Amx,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// Picks the fastest instruction set of this processor, or the one that `BESPOKE_KERNELS` names.
    ///
    /// **Errors**: the variable names none, or one that this processor lacks.
    pub fn detect() -> Result<Isa, KernelsError> {
        match std::env::var_os(OVERRIDE) {
            Some(value) => Isa::named(&value.to_string_lossy()),
            None => Ok(Isa::fastest()),
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16") && has_tile_registers(),
            #[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
            Isa::Amx => false,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        }
    }

    /// The one with the widest vectors of this processor, whose functions decode and round; tile registers are not asked for.
    pub(crate) fn with_widest_vectors() -> Isa {
        [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    pub(crate) fn fastest() -> Isa {
        Isa::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    fn named(value: &str) -> Result<Isa, KernelsError> {
        let isa = Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == value)
            .ok_or_else(|| KernelsError::UnknownIsa { value: value.to_owned() })?;
        if isa.is_available() { Ok(isa) } else { Err(KernelsError::IsaUnavailable { isa }) }
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

/// Whether the processor has the products of AMX, and the system lets this process use its tile registers.
///
/// **Source**: Intel's manual, volume 1, chapter 18; Linux, `Documentation/arch/x86/xstate.rst`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tile_registers() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;
    /// AMX-BF16, AMX-TILE and AMX-INT8, in `edx` of leaf 7.
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// Asks for the use of a state component that is not there from the start.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    /// The state component of the tile registers' data.
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let has_features = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & FEATURES == FEATURES;
        // SAFETY: the call changes nothing but what this process is allowed to use.
        has_features && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    })
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_picks_its_isa_or_says_why_not() {
        assert_eq!(Isa::named("scalar").unwrap(), Isa::Scalar);
        for isa in Isa::ALL {
            match Isa::named(isa.name()) {
                Ok(named) => assert!(named == isa && isa.is_available()),
                Err(error) => assert!(matches!(error, KernelsError::IsaUnavailable { isa: i } if i == isa)),
            }
        }
        let error = Isa::named("sse9").unwrap_err().to_string();
        assert!(error.contains("`sse9`") && error.contains("avx512"), "{error}");
    }

    #[test]
    fn the_fastest_is_available() {
        assert!(Isa::fastest().is_available());
    }
}
