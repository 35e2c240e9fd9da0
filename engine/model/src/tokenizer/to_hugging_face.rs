//! Describes the tokenizer of a GGUF file as `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
//!
//! Only byte-level tokenizers (`gpt2`) have a form there that behaves alike; the merges of `llama` are ordered by scores alone.

use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

use super::Tokenizer;
use super::gguf::{MODEL, byte_level_of};
use crate::ModelError;
use crate::gguf::Gguf;

/// Returns names and contents of the files.
///
/// **Errors**: `Config` for a tokenizer that is not byte-level, or one that cannot be built.
pub fn hugging_face_tokenizer(gguf: &Gguf) -> Result<Vec<(&'static str, String)>, ModelError> {
    let metadata = gguf.metadata();
    let refused =
        |reason: String| ModelError::Config { file: metadata.file().to_path_buf(), field: MODEL.to_owned(), reason };
    if metadata.string(MODEL)? != "gpt2" {
        return Err(refused("only a byte-level tokenizer (`gpt2`) can be written as tokenizer.json".to_owned()));
    }
    let known = Tokenizer::from_gguf(gguf)?;
    let mut tokenizer = byte_level_of(metadata)?;
    let controls: Vec<AddedToken> =
        known.control_tokens().iter().map(|spelling| AddedToken::from(spelling.clone(), true)).collect();
    tokenizer.add_special_tokens(&controls);
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let affixes = &known.tables.affixes;
    if let (Some(&bos), Some(spelling)) = (affixes.prefix.first(), known.bos_text()) {
        let single = format!("{spelling}:0 $A:0");
        let pair = format!("{spelling}:0 $A:0 {spelling}:1 $B:1");
        let mut builder = TemplateProcessing::builder();
        let built = builder.try_single(single).and_then(|builder| builder.try_pair(pair));
        let built = built.map_err(|error| refused(error.to_string()))?;
        let processor = built.special_tokens(vec![(spelling, bos)]).build();
        tokenizer.with_post_processor(Some(processor.map_err(|error| refused(error.to_string()))?));
    }
    let text = tokenizer.to_string(true).map_err(|error| refused(error.to_string()))?;
    let spelled = |text: Option<&str>| text.map_or(Value::Null, |text| json!(text));
    let mut config = json!({
        "add_prefix_space": false,
        "bos_token": spelled(known.bos_text()),
        "clean_up_tokenization_spaces": false,
        "eos_token": spelled(known.eos_text()),
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let mut files = vec![("tokenizer.json", text)];
    if let Some(template) = known.chat_template() {
        config["chat_template"] = json!(template);
        files.push(("chat_template.jinja", template.to_owned()));
    }
    files.push(("tokenizer_config.json", format!("{config:#}\n")));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use bespoke_testkit::TinyModel;

    use super::*;

    #[test]
    fn both_forms_of_a_tokenizer_behave_alike() {
        let file = TinyModel::default().write_gguf().unwrap();
        let gguf = Gguf::open(file.path()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in hugging_face_tokenizer(&gguf).unwrap() {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let (theirs, ours) = (Tokenizer::from_gguf(&gguf).unwrap(), Tokenizer::from_folder(folder.path()).unwrap());
        assert_eq!(theirs.vocab_size(), ours.vocab_size());
        assert_eq!(theirs.control_tokens(), ours.control_tokens());
        assert_eq!((theirs.bos(), theirs.eos_text()), (ours.bos(), ours.eos_text()));
        assert_eq!(theirs.chat_template(), ours.chat_template());
        let control = theirs.eos_text().unwrap();
        for text in ["Hello, world 123!", "a\n\nb  c", "Größe 🙂", &format!("x{control}y")] {
            for (special, control) in [(true, true), (false, false), (true, false)] {
                let expected = theirs.encode_text(text, special, control).unwrap();
                assert_eq!(ours.encode_text(text, special, control).unwrap(), expected, "{text:?}");
            }
        }
    }
}
