//! Writes a model as a GGUF file: first every tensor gets its format, then the header goes out, then the data, rows at a time.

use std::ops::ControlFlow;
use std::path::Path;

use bespoke_kernels::{DType, Matrix, RopeStyle};

use super::output_file::OutputFile;
use super::rows::{RowOrder, Rows};
use super::{Quantization, Role, fitting, metadata};
use crate::gguf::{ALIGNMENT, Header};
use crate::weights::{Names, Part};
use crate::{Architecture, Linear, ModelConfig, ModelError, ModelSource, RopeScaling, Weight, Weights};

/// Weights that are encoded between two writes, so that memory stays small and progress smooth.
const WEIGHTS_AT_ONCE: usize = 1 << 22;

/// How a model is written.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeOptions {
    /// The scheme. [`Quantization::None`] keeps floats as they are and decodes quantized matrices to `F32`.
    pub quantization: Quantization,
    /// Threads that encode, at least 1.
    pub num_threads: usize,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
}

/// How far the writing is.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeProgress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// Bytes of tensor data so far.
    pub bytes: u64,
    /// Bytes of tensor data in the end.
    pub bytes_total: u64,
}

/// A tensor whose rows do not fit the format that the scheme has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The tensor, as the written file calls it.
    pub tensor: String,
    /// Its columns.
    pub cols: usize,
    /// What the scheme asks for.
    pub wanted: DType,
    /// What it got.
    pub found: DType,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeSummary {
    /// Number of tensors and bytes of data in each format, in the order of [`DType::ALL`]; absent formats are left out.
    pub formats: Vec<(DType, usize, u64)>,
    /// Tensors that got another format than the scheme has for them.
    pub replacements: Vec<Replacement>,
    /// Tensors that were quantized before and now lost precision a second time.
    pub num_requantized: usize,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
}

/// Writes an opened model to a GGUF file that this crate and llama.cpp load.
///
/// The file appears under its name only when it is whole. Only tensors that the serving pass uses are written.
///
/// **Errors**: `OutputExists`; `TensorValue` for a weight that is no number; `Config` for a tokenizer or a window that GGUF
/// cannot describe; `Io`; `Interrupted` where `progress` breaks, and nothing is left then; and all that loading the model can
/// meet.
pub fn quantize_model(
    source: &ModelSource,
    output: &Path,
    options: QuantizeOptions,
    progress: &mut dyn FnMut(QuantizeProgress<'_>) -> ControlFlow<()>,
) -> Result<QuantizeSummary, ModelError> {
    let config = source.config()?;
    let weights = Weights::load(source, &config)?;
    let plan = Plan::new(source, &config, &weights, options)?;
    let mut header = Header::default();
    let file_type = metadata::file_type(options.quantization, weights.main_dtype(&config));
    metadata::write(source, &config, file_type, &mut header)?;
    for tensor in &plan.tensors {
        header.tensor(&tensor.name, &tensor.shape, tensor.dtype, tensor.bytes());
    }
    let mut file = OutputFile::create(output, options.overwrite)?;
    let head = header.to_bytes();
    file.write(&head)?;
    let mut bytes = 0;
    for tensor in &plan.tensors {
        tensor.write(source, options.num_threads, &mut file, &mut |written| {
            progress(QuantizeProgress {
                tensor: &tensor.name,
                bytes: bytes + written,
                bytes_total: header.data_bytes(),
            })
        })?;
        bytes += tensor.bytes().next_multiple_of(ALIGNMENT as u64);
    }
    file.finish()?;
    Ok(plan.summary(head.len() as u64 + header.data_bytes()))
}

/// All tensors of the file, in its order.
struct Plan {
    tensors: Vec<Planned>,
    replacements: Vec<Replacement>,
}

/// One tensor of the file.
struct Planned {
    /// As the file calls it.
    name: String,
    /// As the source calls it, for errors.
    source_name: String,
    shape: Vec<usize>,
    matrix: Matrix,
    order: RowOrder,
    dtype: DType,
}

/// Collects the tensors.
struct Planner<'a> {
    source: &'a ModelSource,
    config: &'a ModelConfig,
    options: QuantizeOptions,
    /// Whether q and k of the source rotate halves and those of the file neighbours.
    interleaves: bool,
    plan: Plan,
}

impl Plan {
    fn new(
        source: &ModelSource,
        config: &ModelConfig,
        weights: &Weights,
        options: QuantizeOptions,
    ) -> Result<Plan, ModelError> {
        let is_llama = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
        let plan = Plan { tensors: Vec::new(), replacements: Vec::new() };
        let interleaves = is_llama && weights.rope_style == RopeStyle::Half;
        let mut planner = Planner { source, config, options, interleaves, plan };
        planner.all(weights)?;
        Ok(planner.plan)
    }

    fn summary(self, file_bytes: u64) -> QuantizeSummary {
        let of = |dtype: DType| {
            let found: Vec<u64> = self.tensors.iter().filter(|t| t.dtype == dtype).map(Planned::bytes).collect();
            (dtype, found.len(), found.iter().sum())
        };
        let requantized = |t: &&Planned| t.matrix.dtype().block_len() > 1 && t.dtype != t.matrix.dtype();
        let is_lossy = |t: &&Planned| t.dtype != DType::F32;
        QuantizeSummary {
            formats: DType::ALL.into_iter().map(of).filter(|(_, num_tensors, _)| *num_tensors > 0).collect(),
            num_requantized: self.tensors.iter().filter(requantized).filter(is_lossy).count(),
            replacements: self.replacements,
            file_bytes,
        }
    }
}

impl Planner<'_> {
    fn all(&mut self, weights: &Weights) -> Result<(), ModelError> {
        let (ours, theirs) = (Names::Gguf, Names::of(self.source.files()));
        let name = |name: &str, source_name: &str| (name.to_owned(), source_name.to_owned());
        self.matrix(
            name(ours.embeddings(), theirs.embeddings()),
            plain(&weights.embeddings),
            Role::Vocabulary,
            RowOrder::Same,
        );
        self.vector(ours.final_norm(), &weights.final_norm)?;
        if !self.config.tie_embeddings {
            self.matrix(
                name(ours.output(), theirs.output()),
                plain(&weights.output.weight),
                Role::Vocabulary,
                RowOrder::Same,
            );
        }
        if let Some(divisors) = weights.rope_divisors.clone().or_else(|| rope_divisors(self.config)) {
            self.vector("rope_freqs.weight", &divisors)?;
        }
        for (layer, weights) in weights.layers.iter().enumerate() {
            let norms = [
                (Part::AttnNorm, Some(&weights.attn_norm)),
                (Part::QNorm, weights.q_norm.as_ref()),
                (Part::KNorm, weights.k_norm.as_ref()),
                (Part::FfnNorm, Some(&weights.ffn_norm)),
            ];
            for (part, norm) in norms {
                norm.map(|norm| self.vector(&ours.layer_weight(layer, part), norm)).transpose()?;
            }
            let linears = [
                (Part::Q, &weights.q),
                (Part::K, &weights.k),
                (Part::V, &weights.v),
                (Part::O, &weights.o),
                (Part::Gate, &weights.gate),
                (Part::Up, &weights.up),
                (Part::Down, &weights.down),
            ];
            for (part, linear) in linears {
                self.linear(layer, part, linear, theirs)?;
            }
        }
        Ok(())
    }

    fn linear(&mut self, layer: usize, part: Part, linear: &Linear, theirs: Names) -> Result<(), ModelError> {
        let order = match part {
            Part::Q | Part::K if self.interleaves => RowOrder::Interleaved { head_dim: self.config.head_dim },
            _ => RowOrder::Same,
        };
        let names = (Names::Gguf.layer_weight(layer, part), theirs.layer_weight(layer, part));
        self.matrix(names, plain(&linear.weight), Role::Projection, order);
        if let Some(bias) = &linear.bias {
            let ordered: Vec<f32> = (0..bias.len()).map(|row| bias[order.source(row)]).collect();
            self.vector(&Names::Gguf.layer_bias(layer, part), &ordered)?;
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let matrix = Matrix::from_f32(1, values.len(), values)?;
        self.push((name.to_owned(), name.to_owned()), vec![values.len()], matrix, (DType::F32, RowOrder::Same));
        Ok(())
    }

    fn matrix(&mut self, names: (String, String), matrix: &Matrix, role: Role, order: RowOrder) {
        let cols = matrix.cols();
        let dtype = match self.options.quantization.wanted(role) {
            None if matrix.dtype().block_len() > 1 => DType::F32,
            None => matrix.dtype(),
            Some(wanted) => {
                let found = fitting(wanted, cols);
                if found != wanted {
                    self.plan.replacements.push(Replacement { tensor: names.0.clone(), cols, wanted, found });
                }
                found
            }
        };
        self.push(names, vec![matrix.rows(), cols], matrix.clone(), (dtype, order));
    }

    fn push(
        &mut self,
        (name, source_name): (String, String),
        shape: Vec<usize>,
        matrix: Matrix,
        (dtype, order): (DType, RowOrder),
    ) {
        self.plan.tensors.push(Planned { name, source_name, shape, matrix, order, dtype });
    }
}

impl Planned {
    /// Size of the data without padding.
    fn bytes(&self) -> u64 {
        let row_bytes = self.dtype.row_bytes(self.matrix.cols()).expect("invariant: `fitting` chose the format");
        self.matrix.rows() as u64 * row_bytes as u64
    }

    /// Encodes and writes the rows, and zeros up to where the next tensor starts; `progress` gets the bytes so far.
    fn write(
        &self,
        source: &ModelSource,
        num_threads: usize,
        file: &mut OutputFile,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let rows = Rows { matrix: &self.matrix, order: self.order, dtype: self.dtype, num_threads };
        let num_rows = self.matrix.rows();
        let rows_at_once = (WEIGHTS_AT_ONCE / self.matrix.cols().max(1)).max(1);
        let mut written = 0;
        let mut data = Vec::new();
        for first in (0..num_rows).step_by(rows_at_once) {
            data.clear();
            rows.encode(first..(first + rows_at_once).min(num_rows), &mut data).map_err(|fault| {
                let (file, tensor) = (source.path().to_path_buf(), self.source_name.clone());
                ModelError::TensorValue { file, tensor, reason: fault.to_string() }
            })?;
            file.write(&data)?;
            written += data.len() as u64;
            if progress(written).is_break() {
                return Err(ModelError::Interrupted);
            }
        }
        let padding = written.next_multiple_of(ALIGNMENT as u64) - written;
        file.write(&[0; ALIGNMENT][..padding as usize])
    }
}

/// Returns the matrix of a model that was only opened: nothing is packed for a kernel yet.
fn plain(weight: &Weight) -> &Matrix {
    weight.plain().expect("invariant: weights are packed only when a model is built")
}

/// Returns what stands for Llama 3's scaling in a GGUF file: by what each frequency is divided.
fn rope_divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    if !matches!(config.rope_scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let divisor = |pair: usize| {
        let frequency = config.rope_theta.powf(-2.0 * pair as f64 / config.head_dim as f64);
        (frequency / config.rope_scaling.apply(frequency)) as f32
    };
    Some((0..config.head_dim / 2).map(divisor).collect())
}
