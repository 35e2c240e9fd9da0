//! The engine's end: a model loaded by mistral.rs, one sequence at a time.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{self, TryRecvError},
    },
    thread,
};

use bespoke_domain::TokenId;
use bespoke_engine::{Backend, BackendError, BackendInfo, Bell};
use bespoke_model::ModelSource;
use mistralrs::core::{
    AutoLoaderBuilder, DefaultSchedulerMethod, DeviceMapSetting, EmbeddingSpecificConfig, GGUFLoaderBuilder,
    GGUFSpecificConfig, Loader, MistralRs, MistralRsBuilder, ModelDType, MultimodalSpecificConfig, NormalRequest,
    NormalSpecificConfig, Request, RequestMessage, Response, SamplingParams, SchedulerConfig, TokenSource,
};
use tokio::sync::mpsc as responses;

use crate::{MistralError, facts, gemma, hook::Hook};

/// The chunks of text that mistral.rs may be ahead: it sends one a step, and they are thrown away at every step.
const RESPONSES_MAX: usize = 16;

/// A model that mistral.rs runs.
pub struct Mistral {
    info: BackendInfo,
    bell: Option<Bell>,
    /// Tokens that start once the sequence before is gone: two in flight would get each other's text.
    next: Option<Vec<TokenId>>,
    flight: Option<Flight>,
    requests: responses::Sender<Request>,
    num_requests: usize,
    /// Ends mistral.rs's thread when it is dropped, after the flight, on which that thread may wait.
    _runner: Arc<MistralRs>,
}

/// A sequence that mistral.rs has.
struct Flight {
    /// Closes when mistral.rs has dropped the sequence.
    logits: mpsc::Receiver<Vec<f32>>,
    /// Taken away when the engine has ended the sequence.
    tokens: Option<mpsc::SyncSender<TokenId>>,
    responses: responses::Receiver<Response>,
}

impl Mistral {
    /// Loads a Hugging Face folder, a GGUF file, or a folder with one GGUF file: on the GPU that the crate is built for, else on
    /// the CPU, in f32 there.
    ///
    /// **Errors**: files that are wrong, a model that mistral.rs refuses.
    pub fn load(path: &Path) -> Result<Mistral, MistralError> {
        let source = ModelSource::open(path)?;
        let refused =
            |reason: String| MistralError::Load { path: source.path().to_path_buf(), reason: one_line(&reason) };
        // On a thread of its own: mistral.rs unwraps much of what it reads, and its runtime cannot start within another.
        let loaded = thread::scope(|scope| scope.spawn(|| load(&source, &refused)).join());
        loaded.unwrap_or_else(|_| Err(refused("it panicked".to_owned())))
    }

    /// Hands a sequence to mistral.rs.
    fn take_off(&mut self, tokens: Vec<TokenId>) -> Result<Flight, BackendError> {
        let bell = self.bell.clone().expect("invariant: the engine attaches its bell first");
        let (logits_sender, logits) = mpsc::sync_channel(1);
        let (token_sender, token_receiver) = mpsc::sync_channel(1);
        let (response, responses) = responses::channel(RESPONSES_MAX);
        let hook = Hook { logits: logits_sender, tokens: Mutex::new(token_receiver), bell };
        // Temperature 0 alone makes mistral.rs take the largest: none at all is 1 to it.
        let sampling = SamplingParams { temperature: Some(0.0), ..SamplingParams::neutral() };
        self.num_requests += 1;
        let message = RequestMessage::CompletionTokens(tokens);
        let mut request = NormalRequest::new_simple(message, sampling, response, self.num_requests, None, None);
        request.is_streaming = true;
        request.logits_processors = Some(vec![Arc::new(hook)]);
        let sent = self.requests.try_send(Request::Normal(Box::new(request)));
        sent.map_err(|_| BackendError::Gone("mistral.rs takes no more requests".to_owned()))?;
        Ok(Flight { logits, tokens: Some(token_sender), responses })
    }
}

impl Backend for Mistral {
    fn info(&self) -> BackendInfo {
        self.info.clone()
    }

    fn attach(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    fn start(&mut self, tokens: &[TokenId]) -> Result<(), BackendError> {
        self.next = Some(tokens.to_vec());
        Ok(())
    }

    fn push(&mut self, token: TokenId) -> Result<(), BackendError> {
        if let Some(tokens) = self.flight.as_ref().and_then(|flight| flight.tokens.as_ref()) {
            // What went wrong on the other side is found by the next look.
            let _ = tokens.try_send(token);
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Vec<f32>>, BackendError> {
        if self.flight.as_ref().is_some_and(|flight| flight.tokens.is_none() && flight.is_gone()) {
            self.flight = None;
        }
        if self.flight.is_none()
            && let Some(tokens) = self.next.take()
        {
            self.flight = Some(self.take_off(tokens)?);
        }
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.tokens.is_some()) else { return Ok(None) };
        flight.throw_chunks_away()?;
        match flight.logits.try_recv() {
            Ok(logits) => Ok(Some(logits)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                // The reason may have come after the look above.
                flight.throw_chunks_away()?;
                if self.requests.is_closed() {
                    return Err(BackendError::Gone("mistral.rs has failed".to_owned()));
                }
                Err(BackendError::Sequence("mistral.rs has dropped the sequence".to_owned()))
            }
        }
    }

    fn end(&mut self) {
        self.next = None;
        if let Some(flight) = &mut self.flight {
            flight.tokens = None;
        }
    }
}

impl Flight {
    /// Whether mistral.rs has dropped the sequence.
    fn is_gone(&self) -> bool {
        loop {
            match self.logits.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn throw_chunks_away(&mut self) -> Result<(), BackendError> {
        while let Ok(response) = self.responses.try_recv() {
            match response {
                Response::InternalError(error) | Response::ValidationError(error) => {
                    return Err(BackendError::Sequence(one_line(&error.to_string())));
                }
                Response::ModelError(reason, _) | Response::CompletionModelError(reason, _) => {
                    return Err(BackendError::Sequence(one_line(&reason)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn load(source: &ModelSource, refused: &impl Fn(String) -> MistralError) -> Result<Mistral, MistralError> {
    let mut info = facts::of(source)?;
    let device = mistralrs::best_device(cfg!(not(any(feature = "cuda", feature = "metal"))));
    let device = device.map_err(|error| refused(error.to_string()))?;
    info.runs_on = format!("mistral.rs {}", if device.is_cpu() { "cpu" } else { "gpu" });
    // Lives until the weights are loaded.
    let converted = match source.gguf() {
        Some(gguf) if info.architecture == gemma::ARCHITECTURE => Some(gemma::convert(gguf)?),
        _ => None,
    };
    let loader = match (&converted, source.gguf()) {
        (Some(folder), _) => folder_loader(folder.path()),
        (None, Some(_)) => gguf_loader(source.path()),
        (None, None) => folder_loader(source.path()),
    };
    // The f32 of the CPU is the fast one there, and the exact one.
    let dtype = if device.is_cpu() { ModelDType::F32 } else { ModelDType::Auto };
    let mapping = if device.is_cpu() {
        DeviceMapSetting::dummy()
    } else {
        DeviceMapSetting::Auto(mistralrs::AutoDeviceMapParams::default_text())
    };
    let pipeline = loader
        .load_model_from_hf(None, TokenSource::None, &dtype, &device, true, mapping, None, None)
        .map_err(|error| refused(format!("{error:#}")))?;
    let one = DefaultSchedulerMethod::Fixed(std::num::NonZeroUsize::MIN);
    let builder = MistralRsBuilder::new(pipeline, SchedulerConfig::DefaultScheduler { method: one }, false, None)
        .with_no_prefix_cache(true)
        .with_disable_eos_stop(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runner = runtime.map_err(|error| refused(error.to_string()))?.block_on(builder.build());
    let requests = runner.get_sender(None).map_err(|error| refused(error.to_string()))?;
    Ok(Mistral { info, bell: None, next: None, flight: None, requests, num_requests: 0, _runner: runner })
}

fn gguf_loader(file: &Path) -> Box<dyn Loader> {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let folder = text(file.parent().map(Path::as_os_str));
    let folder = if folder.is_empty() { ".".to_owned() } else { folder };
    let files = vec![text(file.file_name())];
    GGUFLoaderBuilder::new(None, None, folder, files, GGUFSpecificConfig::default(), false, None).build()
}

fn folder_loader(folder: &Path) -> Box<dyn Loader> {
    let folder = folder.to_string_lossy().into_owned();
    let (normal, multimodal) = (NormalSpecificConfig::default(), MultimodalSpecificConfig::default());
    AutoLoaderBuilder::new(normal, multimodal, EmbeddingSpecificConfig::default(), None, None, folder, false, None)
        .build()
}

/// Returns the first line: mistral.rs's errors may carry a backtrace.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
