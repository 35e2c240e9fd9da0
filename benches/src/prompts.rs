//! Prompts of a seeded word list: a beginning that all share and an end of their own, sized by the server's tokenizer.

use crate::{load::LoadOptions, random::Random, target::Target};

/// Common words, each one token with the space before it in most vocabularies.
const WORDS: [&str; 96] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
];
/// How often a text is measured and mended; words of one token need two rounds.
const ROUNDS_MAX: usize = 12;
/// The stream of random numbers of the shared beginning; request `i` has stream `i + 1`, the warm-up the last one.
const SHARED_STREAM: u64 = 0;

/// Makes the prompts of a run, in the order of the requests.
pub(crate) async fn prompts(options: &LoadOptions, target: &Target) -> anyhow::Result<Vec<String>> {
    let shared = sized(Text::new(""), options.shared_tokens, &mut random(options, SHARED_STREAM), target).await?;
    let mut prompts = Vec::with_capacity(options.requests);
    for request in 0..options.requests as u64 {
        let mut random = random(options, request + 1);
        prompts.push(sized(Text::new(&shared), options.prompt_tokens, &mut random, target).await?);
    }
    Ok(prompts)
}

/// Makes a prompt that shares nothing with the others.
pub(crate) async fn warmup_prompt(options: &LoadOptions, target: &Target) -> anyhow::Result<String> {
    sized(Text::new(""), options.prompt_tokens, &mut random(options, u64::MAX), target).await
}

/// Returns so many words, each with a space after it.
pub(crate) fn words(count: usize, random: &mut Random) -> String {
    (0..count).flat_map(|_| [WORDS[random.below(WORDS.len())], " "]).collect()
}

fn random(options: &LoadOptions, stream: u64) -> Random {
    Random::new(options.seed, stream)
}

/// Adds words to a text, or takes added ones away, until it has so many tokens, or nearly where words have several.
async fn sized(mut text: Text, num_tokens: usize, random: &mut Random, target: &Target) -> anyhow::Result<String> {
    for _ in 0..ROUNDS_MAX {
        let found = target.count_tokens(&text.whole()).await?;
        let tokens_per_word = (found / text.num_words().max(1)).max(1);
        let difference = (num_tokens as isize - found as isize) / tokens_per_word as isize;
        if !text.change(difference, random) {
            break;
        }
    }
    Ok(text.whole())
}

/// A beginning and the words that follow it.
struct Text {
    beginning: String,
    words: Vec<&'static str>,
}

impl Text {
    fn new(beginning: &str) -> Self {
        Self { beginning: beginning.to_owned(), words: Vec::new() }
    }

    fn num_words(&self) -> usize {
        self.beginning.split_whitespace().count() + self.words.len()
    }

    /// Adds or takes away so many words; says whether anything changed.
    fn change(&mut self, difference: isize, random: &mut Random) -> bool {
        let before = self.words.len();
        if difference < 0 {
            self.words.truncate(before.saturating_sub(difference.unsigned_abs()));
        }
        for _ in 0..difference {
            self.words.push(WORDS[random.below(WORDS.len())]);
        }
        self.words.len() != before
    }

    fn whole(&self) -> String {
        let words = std::iter::once(self.beginning.as_str()).filter(|text| !text.is_empty());
        words.chain(self.words.iter().copied()).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_grows_and_shrinks_behind_its_beginning() {
        let mut random = Random::new(1, 1);
        let mut text = Text::new("once upon");
        assert!(text.change(5, &mut random));
        let five = text.whole();
        assert_eq!(five.split(' ').count(), 7);
        assert!(text.change(-2, &mut random));
        assert!(five.starts_with(&text.whole()) && text.whole().split(' ').count() == 5);
        assert!(text.change(-9, &mut random));
        assert_eq!(text.whole(), "once upon");
        assert!(!text.change(-1, &mut random));
    }
}
