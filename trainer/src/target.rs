//! The linear modules of a layer: which of them an adapter may change, and what PEFT calls them.

use bespoke_model::ModelConfig;

/// A linear module of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// Gate of the feed-forward block.
    Gate,
    /// Its other input.
    Up,
    /// Its output.
    Down,
}

impl Target {
    /// Every module, in the order of a layer.
    pub const ALL: [Target; 7] = [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// Its place in [`Target::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name that PEFT's `target_modules` uses.
    pub fn name(self) -> &'static str {
        match self {
            Target::Q => "q_proj",
            Target::K => "k_proj",
            Target::V => "v_proj",
            Target::O => "o_proj",
            Target::Gate => "gate_proj",
            Target::Up => "up_proj",
            Target::Down => "down_proj",
        }
    }

    /// The module inside its layer, such as `self_attn.q_proj`.
    pub fn path(self) -> String {
        match self {
            Target::Q | Target::K | Target::V | Target::O => format!("self_attn.{}", self.name()),
            Target::Gate | Target::Up | Target::Down => format!("mlp.{}", self.name()),
        }
    }

    /// Number of outputs and inputs of the module.
    pub fn size(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        match self {
            Target::Q => (config.query_size(), hidden),
            Target::K | Target::V => (config.kv_size(), hidden),
            Target::O => (hidden, config.query_size()),
            Target::Gate | Target::Up => (wide, hidden),
            Target::Down => (hidden, wide),
        }
    }

    /// Reads module names, or the one word `all-linear`.
    ///
    /// **Errors**: the first name that is none.
    pub fn parse_all(names: &[String]) -> Result<Vec<Target>, String> {
        if names.len() == 1 && names[0] == "all-linear" {
            return Ok(Target::ALL.to_vec());
        }
        let find = |name: &String| {
            let last = name.rsplit('.').next().unwrap_or(name);
            Target::ALL.into_iter().find(|target| target.name() == last).ok_or_else(|| name.clone())
        };
        let mut targets = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        targets.sort();
        targets.dedup();
        Ok(targets)
    }
}
