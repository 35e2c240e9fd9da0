//! Rotary position embedding: the tables. The rotation itself is in `elementwise`.

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with element `i + head_dim / 2`: `rotate_half` of Hugging Face.
    Half,
    /// Element `2 i` with element `2 i + 1`: Llama weights in GGUF files.
    Interleaved,
}

/// Sines and cosines of every position, for one model.
#[derive(Clone)]
pub struct Rope {
    style: RopeStyle,
    num_pairs: usize,
    max_positions: usize,
    /// `(max_positions, num_pairs)`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Computes the tables, in double precision, for positions below `max_positions`.
    ///
    /// **Shapes**: `inv_freq` `(head_dim / 2)`, already scaled as the model's configuration says; `attention_factor`
    /// multiplies every sine and cosine (1 for most models).
    pub fn new(style: RopeStyle, inv_freq: &[f32], max_positions: usize, attention_factor: f32) -> Rope {
        let factor = f64::from(attention_factor);
        let angles = (0..max_positions).flat_map(|p| inv_freq.iter().map(move |&freq| p as f64 * f64::from(freq)));
        let (sin, cos) = angles.map(f64::sin_cos).map(|(s, c)| ((s * factor) as f32, (c * factor) as f32)).unzip();
        Rope { style, num_pairs: inv_freq.len(), max_positions, cos, sin }
    }

    /// The tables of the opposite rotation, which gradients go through.
    pub fn inverse(&self) -> Rope {
        Rope { sin: self.sin.iter().map(|sin| -sin).collect(), ..self.clone() }
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.num_pairs
    }

    /// Number of positions in the tables.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Which elements form a pair.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Cosines and sines of one position.
    ///
    /// **Panics** if `position` is not in the tables.
    pub(crate) fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let position = position as usize;
        assert!(position < self.max_positions, "position {position} of {}", self.max_positions);
        let pairs = position * self.num_pairs..(position + 1) * self.num_pairs;
        (&self.cos[pairs.clone()], &self.sin[pairs])
    }
}
