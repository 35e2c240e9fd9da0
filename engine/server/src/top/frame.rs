//! One look at a server as text. Pure.

use std::fmt::Write as _;

use super::samples::Samples;

/// The histograms on the page and what they are called here.
const TIMES: [(&str, &str); 4] = [
    ("queue", "bespoke_queue_seconds"),
    ("first token", "bespoke_first_token_seconds"),
    ("next token", "bespoke_next_token_seconds"),
    ("step", "bespoke_step_seconds"),
];
/// The width of the bar of the KV cache.
const BAR: usize = 30;
/// The callers that are shown.
const CALLERS_MAX: usize = 8;

/// Returns what is to be seen; rates and times are since `last`, or without it since the start.
pub(super) fn frame(last: Option<&Samples>, now: &Samples) -> String {
    let look = Look { last, now };
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = look.write(&mut text);
    text
}

struct Look<'a> {
    last: Option<&'a Samples>,
    now: &'a Samples,
}

impl Look<'_> {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        let now = self.now;
        let sum = |name: &str| now.sum(name);
        let build = now.all("bespoke_build_info").first();
        let fact = |label: &str| build.map_or("", |build| build.label(label));
        let state = if sum("bespoke_engine_failed") > 0.0 { "FAILED" } else { "up" };
        let uptime = duration(sum("bespoke_uptime_seconds"));
        let (version, model, dtype, kernels) = (fact("version"), fact("model"), fact("dtype"), fact("kernels"));
        writeln!(text, "bespoke-engine {version}  {model} {dtype} {kernels}  {state} {uptime}\n")?;
        let (waiting, waiting_max) = (sum("bespoke_requests_waiting"), sum("bespoke_requests_waiting_max"));
        let (running, running_max) = (sum("bespoke_sequences_running"), sum("bespoke_sequences_running_max"));
        writeln!(text, "requests     {waiting} of {waiting_max} waiting, {running} of {running_max} running")?;
        let ended = (sum("bespoke_requests_total"), self.rate("bespoke_requests_total"));
        writeln!(text, "             {} ended, {:.1}/s", ended.0, ended.1)?;
        let (used, blocks) = (sum("bespoke_kv_blocks_used"), sum("bespoke_kv_blocks"));
        let share = share(used, blocks);
        let full = (share * BAR as f64).round() as usize;
        let bar: String = (0..BAR).map(|place| if place < full { '#' } else { '.' }).collect();
        writeln!(text, "kv cache     [{bar}] {:.0} %, {used} of {blocks} blocks", share * 100.0)?;
        self.tokens(text)?;
        writeln!(text, "\ntimes             p50        p99")?;
        for (name, histogram) in TIMES {
            let quantile = |share| now.quantile(self.last, histogram, share).map_or("-".to_owned(), time);
            writeln!(text, "  {name:<11} {:>10} {:>10}", quantile(0.5), quantile(0.99))?;
        }
        self.outcomes(text)
    }

    fn tokens(&self, text: &mut String) -> std::fmt::Result {
        let sum = |name: &str| self.now.sum(name);
        let (prompt, generated) = (sum("bespoke_prompt_tokens_total"), sum("bespoke_generated_tokens_total"));
        let rate = self.rate("bespoke_generated_tokens_total");
        writeln!(text, "tokens       {generated} out, {rate:.1}/s; {prompt} in")?;
        let cached = share(sum("bespoke_cached_tokens_total"), prompt) * 100.0;
        write!(text, "             {cached:.0} % of prompts cached")?;
        let drafted = sum("bespoke_drafted_tokens_total");
        if drafted > 0.0 {
            let right = share(sum("bespoke_accepted_tokens_total"), drafted) * 100.0;
            write!(text, ", {right:.0} % of drafts right")?;
        }
        writeln!(text)
    }

    fn outcomes(&self, text: &mut String) -> std::fmt::Result {
        let mut errors = std::collections::BTreeMap::<&str, f64>::new();
        for sample in self.now.all("bespoke_requests_total").iter().filter(|sample| sample.label("code") != "OK") {
            *errors.entry(sample.label("code")).or_default() += sample.value;
        }
        let errors: Vec<_> = errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        writeln!(text, "\nerrors       {errors}")?;
        let (open, refused) = (self.now.sum("bespoke_connections"), self.now.sum("bespoke_connections_refused_total"));
        writeln!(text, "connections  {open} open, {refused} refused")?;
        for caller in self.now.all("bespoke_token_requests_total").iter().take(CALLERS_MAX) {
            let name = caller.label("token");
            let of = |metric: &str| {
                let samples = self.now.all(metric).iter();
                samples.filter(|sample| sample.label("token") == name).map(|sample| sample.value).sum::<f64>()
            };
            let (prompt, generated) =
                (of("bespoke_token_prompt_tokens_total"), of("bespoke_token_generated_tokens_total"));
            writeln!(text, "  {name:<20} {} requests, {prompt} tokens in, {generated} out", caller.value)?;
        }
        Ok(())
    }

    /// Returns how fast a counter grows, a second.
    fn rate(&self, counter: &str) -> f64 {
        let of = |name: &str| self.now.sum(name) - self.last.map_or(0.0, |last| last.sum(name));
        let seconds = of("bespoke_uptime_seconds");
        if seconds > 0.0 { of(counter).max(0.0) / seconds } else { 0.0 }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).clamp(0.0, 1.0) } else { 0.0 }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
bespoke_build_info{version=\"0.1.0\",model=\"tiny\",dtype=\"F32\",kernels=\"avx2\"} 1
bespoke_uptime_seconds 3723.5
bespoke_requests_waiting 3
bespoke_requests_waiting_max 256
bespoke_sequences_running 2
bespoke_sequences_running_max 32
bespoke_kv_blocks_used 50
bespoke_kv_blocks 100
bespoke_prompt_tokens_total 200
bespoke_cached_tokens_total 50
bespoke_generated_tokens_total 7447
bespoke_first_token_seconds_bucket{le=\"0.1\"} 0
bespoke_first_token_seconds_bucket{le=\"0.2\"} 10
bespoke_first_token_seconds_bucket{le=\"+Inf\"} 10
bespoke_requests_total{method=\"/a\",code=\"OK\"} 9
bespoke_requests_total{method=\"/a\",code=\"CANCELLED\"} 1
bespoke_token_requests_total{token=\"alice\"} 10
";

    #[test]
    fn a_look_shows_what_matters() {
        let now = Samples::parse(PAGE).unwrap();
        let text = frame(None, &now);
        for part in [
            "tiny F32 avx2  up 1:02:03",
            "3 of 256 waiting, 2 of 32 running",
            "[###############...............] 50 %, 50 of 100 blocks",
            "7447 out, 2.0/s",
            "25 % of prompts cached",
            "150.0 ms",
            "CANCELLED 1",
            "alice",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn rates_are_since_the_last_look() {
        let last = Samples::parse(PAGE).unwrap();
        let later = PAGE.replace("3723.5", "3725.5").replace("7447", "7547");
        let text = frame(Some(&last), &Samples::parse(&later).unwrap());
        assert!(text.contains("7547 out, 50.0/s"), "{text}");
        assert!(text.contains("first token          -"), "nothing came since:\n{text}");
    }
}
