//! The format of the KV cache as flags and the configuration file spell it.

use bespoke_model::KvDType;
use clap::ValueEnum;
use serde::Deserialize;

/// A format of keys and values, or the choice of one by the model.
#[allow(non_camel_case_types, reason = "`Q8_0` is the name of the format")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDTypeName {
    /// f16 where the weights are quantized, f32 where they are floats.
    #[default]
    Auto,
    /// 32 bits: what the model computes, exactly.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits, less exact than f16 but with the range of f32.
    Bf16,
    /// 8.5 bits; heads must be a multiple of 32.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl From<KvDTypeName> for Option<KvDType> {
    /// `None` leaves the choice to the model.
    fn from(name: KvDTypeName) -> Self {
        match name {
            KvDTypeName::Auto => None,
            KvDTypeName::F32 => Some(KvDType::F32),
            KvDTypeName::F16 => Some(KvDType::F16),
            KvDTypeName::Bf16 => Some(KvDType::Bf16),
            KvDTypeName::Q8_0 => Some(KvDType::Q8_0),
        }
    }
}
