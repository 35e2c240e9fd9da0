//! Rows become token sequences and pairs, through the one renderer of the domain.

use std::time::SystemTime;

use bespoke_domain::{
    ChatTemplate, Persona, Prompt, RenderError, RenderInput, Rendered, Row, SpanKind, Template, TokenId, render,
};
use bespoke_model::{ModelError, ModelSource, Tokenizer};
use sha2::{Digest, Sha256};

use crate::TrainError;
use crate::data::PlacedRow;
use crate::recipe::{DataRecipe, LossOn, Method, TrainingType};

/// One thing to train on.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// A text of which some tokens count.
    Sequence {
        /// The tokens.
        tokens: Vec<TokenId>,
        /// Whether each counts.
        trained: Vec<bool>,
    },
    /// A prompt and two answers, of which every token counts.
    Pair {
        /// The end of the prompt.
        prompt: Vec<TokenId>,
        /// The preferred answer.
        chosen: Vec<TokenId>,
        /// The other.
        rejected: Vec<TokenId>,
    },
}

/// An example, where it comes from and what was cut off.
#[derive(Clone, Debug)]
pub struct Made {
    /// File and line.
    pub place: String,
    /// The example.
    pub example: Example,
    /// Tokens before cutting.
    pub num_tokens: usize,
    /// Tokens cut off.
    pub num_cut: usize,
}

/// Makes examples of rows.
pub struct ExampleMaker {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    template: Template,
    recipe: DataRecipe,
    method: Method,
}

/// A persona and the answers that go with it.
struct Choice<'a> {
    persona: Option<(&'static str, &'a str)>,
    preferred: (&'static str, &'a str),
    other: (&'static str, &'a str),
}

impl Example {
    /// Rows that it takes in a batch.
    pub fn num_rows(&self) -> usize {
        match self {
            Example::Sequence { tokens, .. } => tokens.len(),
            Example::Pair { prompt, chosen, rejected } => prompt.len() + chosen.len() + rejected.len(),
        }
    }
}

impl ExampleMaker {
    /// Reads the tokenizer of a model.
    ///
    /// **Errors**: a tokenizer that cannot be read, or no chat template where the recipe asks for it.
    pub fn new(source: &ModelSource, recipe: &DataRecipe, method: Method) -> Result<ExampleMaker, TrainError> {
        let tokenizer = match source.gguf() {
            Some(gguf) => Tokenizer::from_gguf(gguf)?,
            None => Tokenizer::from_folder(source.path())?,
        };
        let template = Template::from(recipe.template);
        let chat = match (template, tokenizer.chat_template()) {
            (Template::Chat, Some(text)) => {
                let (bos, eos) = (tokenizer.bos_text(), tokenizer.eos_text());
                let broken = |source| TrainError::Render { place: "chat template".to_owned(), source };
                Some(ChatTemplate::new(text, bos, eos, tokenizer.control_tokens()).map_err(broken)?)
            }
            _ => None,
        };
        Ok(ExampleMaker { tokenizer, chat, template, recipe: recipe.clone(), method })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Identifies the wording of the template, as the engine reports it.
    pub fn template_hash(&self) -> String {
        let digest = Sha256::digest(self.template.identity(self.chat.as_ref()));
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Makes the examples of a row: one, or two where the recipe trains on both personas.
    ///
    /// **Errors**: says with file and line what the row lacks.
    pub fn make(&self, placed: &PlacedRow) -> Result<Vec<Made>, String> {
        let bad = |reason: String| format!("{}: {reason}", placed.place);
        let mut made = Vec::new();
        for choice in choices(&placed.row, self.recipe.training_type) {
            let (example, num_tokens) = self.example(&placed.row, &choice).map_err(bad)?;
            let num_kept = match &example {
                Example::Sequence { tokens, .. } => tokens.len(),
                Example::Pair { prompt, chosen, rejected } => prompt.len() + chosen.len() + rejected.len(),
            };
            if let Example::Sequence { trained, .. } = &example
                && !trained.iter().skip(1).any(|&trained| trained)
            {
                let limit = self.recipe.length_max;
                return Err(bad(format!("nothing of the answer is left within data.length_max = {limit} tokens")));
            }
            made.push(Made { place: placed.place.clone(), example, num_tokens, num_cut: num_tokens - num_kept });
        }
        Ok(made)
    }

    fn example(&self, row: &Row, choice: &Choice<'_>) -> Result<(Example, usize), String> {
        let persona = match choice.persona {
            Some((column, text)) => Some(Persona::new(text).map_err(|error| format!("column `{column}`: {error}"))?),
            None => None,
        };
        let rendered = |(column, answer): (&str, &str)| -> Result<Rendered, String> {
            if answer.trim().is_empty() {
                return Err(format!("column `{column}` is empty"));
            }
            self.render(row, persona.as_ref(), answer).map_err(|error| error.to_string())
        };
        if row.prompt.trim().is_empty() {
            return Err("column `prompt` is empty".to_owned());
        }
        let preferred = rendered(choice.preferred)?;
        let failed = |error: ModelError| error.to_string();
        match self.method {
            Method::Sft => self.sequence(&preferred).map_err(failed),
            Method::Dpo => {
                let other = rendered(choice.other)?;
                self.pair(&preferred, &other).map_err(failed)
            }
        }
    }

    fn render(&self, row: &Row, persona: Option<&Persona>, answer: &str) -> Result<Rendered, RenderError> {
        let prompt = Prompt::Text(row.prompt.clone());
        render(&RenderInput {
            template: self.template,
            prompt: &prompt,
            persona,
            persona_in_prompt: false,
            response_prefix: "",
            response: Some(answer),
            end_token: self.tokenizer.eos_text(),
            chat: self.chat.as_ref(),
            // A template may ask for the date; training rows have none.
            now: SystemTime::UNIX_EPOCH,
        })
    }

    /// The text as one run of tokens, its end cut off.
    fn sequence(&self, rendered: &Rendered) -> Result<(Example, usize), ModelError> {
        let encoded = self.tokenizer.encode(rendered)?;
        let (mut tokens, mut trained) = (encoded.ids, encoded.trained);
        if self.recipe.loss == LossOn::Full {
            trained.iter_mut().for_each(|trained| *trained = true);
        }
        let num_tokens = tokens.len();
        tokens.truncate(self.recipe.length_max);
        trained.truncate(self.recipe.length_max);
        Ok((Example::Sequence { tokens, trained }, num_tokens))
    }

    /// Prompt and answers encoded apart; of the prompt the end is kept, of the answers the beginning.
    fn pair(&self, preferred: &Rendered, other: &Rendered) -> Result<(Example, usize), ModelError> {
        let mut prompt = self.tokenizer.encode(&part(preferred, false))?.ids;
        let mut answers = [self.answer(preferred)?, self.answer(other)?];
        let num_tokens = prompt.len() + answers[0].len() + answers[1].len();
        prompt.drain(..prompt.len().saturating_sub(self.recipe.prompt_length_max));
        for answer in &mut answers {
            answer.truncate(self.recipe.length_max - prompt.len());
        }
        let [chosen, rejected] = answers;
        Ok((Example::Pair { prompt, chosen, rejected }, num_tokens))
    }

    fn answer(&self, rendered: &Rendered) -> Result<Vec<TokenId>, ModelError> {
        let mut ids = Vec::new();
        for span in part(rendered, true).spans {
            match span.kind {
                SpanKind::Text => ids.extend(self.tokenizer.encode_continuation(&span.text)?),
                SpanKind::Control => {
                    ids.extend(self.tokenizer.encode(&Rendered { spans: vec![span], add_special: false })?.ids);
                }
            }
        }
        Ok(ids)
    }
}

/// The trained or the other spans of a rendered row.
fn part(rendered: &Rendered, trained: bool) -> Rendered {
    let spans = rendered.spans.iter().filter(|span| span.trained == trained).cloned().collect();
    Rendered { spans, add_special: rendered.add_special && !trained }
}

fn choices(row: &Row, training_type: TrainingType) -> Vec<Choice<'_>> {
    let (chosen, rejected) = (("chosen", row.chosen.as_str()), ("rejected", row.rejected.as_str()));
    let with = |persona, preferred, other| Choice { persona, preferred, other };
    let first = || with(Some(("chosen_persona_gold", row.chosen_persona_gold.as_str())), chosen, rejected);
    let second = || with(Some(("rejected_persona_gold", row.rejected_persona_gold.as_str())), rejected, chosen);
    match training_type {
        TrainingType::Chosen => vec![first()],
        TrainingType::Rejected => vec![second()],
        TrainingType::All => vec![first(), second()],
        TrainingType::None => vec![with(None, chosen, rejected)],
    }
}

/// Makes the examples of all rows, on so many threads; bad rows stop it unless the recipe passes over them. `bad` are those
/// that could not be read, beside `rows`.
///
/// **Errors**: `BadRows` with file and line of the first ones.
pub fn make_all(
    maker: &ExampleMaker,
    rows: &[PlacedRow],
    mut bad: Vec<String>,
    recipe: &DataRecipe,
    num_threads: usize,
) -> Result<Vec<Made>, TrainError> {
    /// Bad rows that an error shows.
    const SHOWN: usize = 10;
    let num_rows = rows.len() + bad.len();
    let taken = if recipe.rows_max == 0 { rows.len() } else { recipe.rows_max.min(rows.len()) };
    let mut made = Vec::new();
    for result in make_rows(maker, &rows[..taken], num_threads) {
        match result {
            Ok(examples) => made.extend(examples),
            Err(reason) => bad.push(reason),
        }
    }
    if !bad.is_empty() && !recipe.skip_bad_rows {
        let num_bad = bad.len();
        bad.truncate(SHOWN);
        return Err(TrainError::BadRows { num_bad, num_rows, shown: bad });
    }
    if !bad.is_empty() {
        tracing::warn!(num_bad = bad.len(), first = bad[0], "bad rows are passed over");
    }
    if made.is_empty() {
        return Err(TrainError::Setting { field: "data", reason: "has no usable row".to_owned() });
    }
    Ok(made)
}

/// The examples of each row, in the order of the rows.
fn make_rows(maker: &ExampleMaker, rows: &[PlacedRow], num_threads: usize) -> Vec<Result<Vec<Made>, String>> {
    let make = |rows: &[PlacedRow]| rows.iter().map(|row| maker.make(row)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let parts = rows.chunks(rows.len().div_ceil(num_threads.max(1)).max(1));
        let parts: Vec<_> = parts.map(|rows| scope.spawn(move || make(rows))).collect();
        let joined = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    })
}
