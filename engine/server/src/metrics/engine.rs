//! What the engine has counted and measured, as Prometheus reads it. Read when asked for; the engine knows nothing of it.

use std::fmt;

use bespoke_engine::{Distribution, Engine};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// The metrics of an engine.
pub(crate) struct EngineMetrics {
    engine: Engine,
    sequences_max: usize,
    queue_max: usize,
}

impl EngineMetrics {
    /// Reads an engine with these limits: of sequences that run and of requests that wait.
    pub(crate) fn new(engine: Engine, (sequences_max, queue_max): (usize, usize)) -> Self {
        Self { engine, sequences_max, queue_max }
    }
}

impl fmt::Debug for EngineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineMetrics").finish_non_exhaustive()
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let (info, load, totals) = (self.engine.model_info(), self.engine.load(), self.engine.totals());
        let measures = self.engine.measures();
        page.info(
            "bespoke_build",
            "The program and its model",
            [
                ("version", env!("CARGO_PKG_VERSION")),
                ("model", &info.name),
                ("model_digest", &info.digest),
                ("dtype", &info.dtype),
                ("kernels", &info.isa),
            ],
        )?;
        page.gauge("bespoke_uptime_seconds", "Time since the engine was built", self.engine.uptime().as_secs_f64())?;
        let failed = f64::from(u8::from(self.engine.has_failed()));
        page.gauge("bespoke_engine_failed", "1 when the engine has ended after a defect", failed)?;
        page.count("bespoke_requests_waiting", "Requests in the queue", load.num_waiting)?;
        page.count("bespoke_requests_waiting_max", "Requests that may wait", self.queue_max)?;
        page.count("bespoke_sequences_running", "Sequences that run", load.num_running)?;
        page.count("bespoke_sequences_running_max", "Sequences that may run at once", self.sequences_max)?;
        page.count("bespoke_kv_blocks_used", "Blocks of the KV cache in use", load.num_blocks_in_use)?;
        page.count("bespoke_kv_blocks", "All blocks of the KV cache", info.num_blocks as usize)?;
        page.counter("bespoke_prompt_tokens", "Tokens of prompts whose requests have ended", totals.prompt_tokens)?;
        page.counter("bespoke_cached_tokens", "Those found in the prefix cache", totals.cached_tokens)?;
        page.counter("bespoke_generated_tokens", "Tokens of answers", measures.generated_tokens)?;
        page.counter("bespoke_drafted_tokens", "Tokens that speculation has drafted", totals.drafted_tokens)?;
        page.counter("bespoke_accepted_tokens", "Drafted tokens that were right", totals.accepted_tokens)?;
        page.counter("bespoke_preemptions", "Sequences that gave their blocks back", totals.num_preempted)?;
        page.counter("bespoke_step_tokens", "Tokens that went through the model", measures.step_tokens)?;
        page.times("bespoke_queue", "From arrival to admission", &measures.queue)?;
        page.times("bespoke_first_token", "From arrival to the first token", &measures.first_token)?;
        page.times("bespoke_next_token", "Between the tokens of a sequence", &measures.next_token)?;
        page.times("bespoke_step", "One step of the engine", &measures.step)
    }
}

/// Writes one metric after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn info<const N: usize>(&mut self, name: &str, help: &str, labels: [(&str, &str); N]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn count(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
    }

    fn times(&mut self, name: &str, help: &str, times: &Distribution) -> fmt::Result {
        // The encoder writes the greatest number as infinity, and adds the buckets up.
        let buckets: Vec<_> = times.buckets.iter().map(|&(end, count)| (end.min(f64::MAX), count)).collect();
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(times.sum_s, times.count(), &buckets, None)
    }
}
