//! What the engine's tests share: a tiny model on disk and ways to run requests to their ends.

use std::time::{Duration, Instant};

use bespoke_engine::{
    Engine, EngineBuilder, EngineError, Event, Generation,
    domain::{Delta, Finished, Generate, Prompt, PromptSpec, Request, Sampling, SamplingParams, Started, Template},
};
use bespoke_testkit::{TinyDtype, TinyModel, TinyModelDir};
use futures::{StreamExt, executor::block_on};

/// An engine on a tiny random model; the folder lives as long as this.
pub(crate) struct Tiny {
    pub(crate) engine: Engine,
    _folder: TinyModelDir,
}

impl Tiny {
    /// Takes an engine and the folder of its model.
    pub(crate) fn new(engine: Engine, folder: TinyModelDir) -> Self {
        Self { engine, _folder: folder }
    }
}

/// Builds an engine on the default tiny model.
pub(crate) fn tiny(configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Tiny {
    let folder = TinyModel::default().write_hf().unwrap();
    let builder = Engine::builder().model(folder.path()).num_threads(1);
    Tiny::new(configure(builder).build().unwrap(), folder)
}

/// The same on weights of a type, in a GGUF file.
pub(crate) fn tiny_of(dtype: TinyDtype, configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Tiny {
    // Heads of 32, which fit tile registers.
    let file = TinyModel { dtype, head_dim: 32, ..TinyModel::default() }.write_gguf().unwrap();
    let builder = Engine::builder().model(file.path()).num_threads(1);
    Tiny::new(configure(builder).build().unwrap(), file)
}

/// Builds an engine for one sequence on a model that takes milliseconds for a token, so that a reader is always faster.
pub(crate) fn slow(configure: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Tiny {
    let folder = TinyModel { num_layers: 16, hidden_size: 256, intermediate_size: 512, ..TinyModel::default() };
    let folder = folder.write_hf().unwrap();
    let builder = Engine::builder().model(folder.path()).num_threads(1).sequences_max(1);
    Tiny::new(configure(builder).build().unwrap(), folder)
}

/// A request for `tokens` greedy tokens that nothing ends early.
pub(crate) fn greedy(prompt: &str, tokens: u32) -> Generate {
    let spec = PromptSpec { template: Some(Template::None), ..PromptSpec::new(Prompt::Text(prompt.to_owned())) };
    let mut generate = Generate::new(spec);
    generate.sampling = Sampling::greedy();
    generate.max_new_tokens = tokens;
    generate.stop.ignore_end = true;
    generate
}

/// The same with random draws.
pub(crate) fn seeded(prompt: &str, tokens: u32, seed: u64) -> Generate {
    let params = SamplingParams { temperature: 1.5, top_p: 0.95, seed: Some(seed), ..Default::default() };
    Generate { sampling: params.try_into().unwrap(), ..greedy(prompt, tokens) }
}

/// All that a request yields.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) started: Started,
    pub(crate) deltas: Vec<Delta>,
    pub(crate) finished: Finished,
}

impl Outcome {
    /// The tokens of a choice.
    pub(crate) fn ids(&self, choice: u32) -> Vec<u32> {
        self.of(choice).flat_map(|delta| delta.token_ids.iter().copied()).collect()
    }

    /// The text of a choice.
    pub(crate) fn text(&self, choice: u32) -> String {
        self.of(choice).map(|delta| delta.text.as_str()).collect()
    }

    fn of(&self, choice: u32) -> impl Iterator<Item = &Delta> {
        self.deltas.iter().filter(move |delta| delta.choice == choice)
    }
}

/// Reads a stream to its end, checking its order.
pub(crate) fn collect(mut generation: Generation) -> Result<Outcome, EngineError> {
    block_on(async {
        let started = match generation.next().await {
            Some(Ok(Event::Started(started))) => started,
            Some(Err(error)) => return Err(error),
            other => panic!("the first event is {other:?}"),
        };
        let mut deltas = Vec::new();
        loop {
            match generation.next().await.expect("a stream ends with a terminal event") {
                Ok(Event::Delta(delta)) => deltas.push(delta),
                Ok(Event::Finished(finished)) => {
                    assert!(generation.next().await.is_none(), "something follows the terminal event");
                    return Ok(Outcome { started, deltas, finished });
                }
                Ok(Event::Started(_)) => panic!("a second started event"),
                Err(error) => return Err(error),
            }
        }
    })
}

/// Runs a request alone.
pub(crate) fn run(engine: &Engine, generate: Generate) -> Outcome {
    collect(engine.generate(Request::try_from(generate).unwrap()).unwrap()).unwrap()
}

/// Starts a request.
pub(crate) fn start(engine: &Engine, generate: Generate) -> Generation {
    engine.generate(Request::try_from(generate).unwrap()).unwrap()
}

/// Waits until something holds, at most ten seconds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}
