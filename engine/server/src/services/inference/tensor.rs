//! Tensors of text: their elements in a list of their type, or as raw bytes.

use bespoke_domain::Invalid;
use bespoke_proto::inference::{
    InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor,
};

/// The type of tensors whose elements are byte strings.
pub(super) const BYTES: &str = "BYTES";
const BOOL: &str = "BOOL";

/// The one element of an input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Element {
    Text(String),
    Bool(bool),
}

/// Takes the name and the one element of each input out of a request.
///
/// **Errors**: an input that is not one element of type BYTES or BOOL.
pub(super) fn take_inputs(request: &mut ModelInferRequest) -> Result<Vec<(String, Element)>, Invalid> {
    let inputs = std::mem::take(&mut request.inputs);
    let raw = std::mem::take(&mut request.raw_input_contents);
    if !raw.is_empty() && raw.len() != inputs.len() {
        let reason = format!("has {} entries for {} inputs", raw.len(), inputs.len());
        return Err(Invalid::new("raw_input_contents", reason));
    }
    let mut raw = raw.into_iter();
    inputs.into_iter().map(|input| take_input(input, raw.next())).collect()
}

fn take_input(input: InferInputTensor, raw: Option<Vec<u8>>) -> Result<(String, Element), Invalid> {
    let InferInputTensor { name, datatype, shape, contents, .. } = input;
    let wrong = |reason: &str| Invalid::new(format!("inputs.{name}"), reason);
    if shape.is_empty() || shape.iter().any(|&size| size != 1) {
        return Err(wrong("must have the shape [1]"));
    }
    let contents = contents.unwrap_or_default();
    let element = match (datatype.as_str(), raw) {
        (BYTES, Some(raw)) => Element::Text(utf8(one_of_raw(raw).ok_or_else(|| wrong("is not one element"))?, wrong)?),
        (BYTES, None) => {
            let [bytes] = contents.bytes_contents.try_into().map_err(|_| wrong("must have one element"))?;
            Element::Text(utf8(bytes, wrong)?)
        }
        (BOOL, Some(raw)) if raw.len() == 1 => Element::Bool(raw[0] != 0),
        (BOOL, None) if contents.bool_contents.len() == 1 => Element::Bool(contents.bool_contents[0]),
        (BOOL, _) => return Err(wrong("must have one element")),
        _ => return Err(wrong("must be of the type BYTES, or BOOL for `stream`")),
    };
    Ok((name, element))
}

/// Takes the length off an element that is alone.
fn one_of_raw(mut raw: Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(*raw.first_chunk()?);
    (raw.len() - 4 == length as usize).then(|| raw.split_off(4))
}

fn utf8(bytes: Vec<u8>, wrong: impl Fn(&str) -> Invalid) -> Result<String, Invalid> {
    String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8"))
}

/// Returns the output of texts: as raw bytes, or in the list of its type.
pub(super) fn output(texts: &[&str], is_raw: bool) -> (InferOutputTensor, Vec<Vec<u8>>) {
    let mut tensor = InferOutputTensor {
        name: "text_output".to_owned(),
        datatype: BYTES.to_owned(),
        shape: vec![texts.len() as i64],
        ..InferOutputTensor::default()
    };
    if is_raw {
        let mut raw = Vec::new();
        for text in texts {
            raw.extend((text.len() as u32).to_le_bytes());
            raw.extend(text.as_bytes());
        }
        return (tensor, vec![raw]);
    }
    let bytes_contents = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    tensor.contents = Some(InferTensorContents { bytes_contents, ..InferTensorContents::default() });
    (tensor, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> ModelInferRequest {
        let input = InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        };
        ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }
    }

    fn raw(datatype: &str, raw: &[u8]) -> Result<Element, Invalid> {
        let mut request =
            ModelInferRequest { raw_input_contents: vec![raw.to_vec()], ..input(datatype, &[1, 1], None) };
        take_inputs(&mut request).map(|mut inputs| inputs.remove(0).1)
    }

    #[test]
    fn both_forms_are_read_alike() {
        let contents = InferTensorContents { bytes_contents: vec![b"hi".to_vec()], ..InferTensorContents::default() };
        let listed = take_inputs(&mut input(BYTES, &[1], Some(contents))).unwrap();
        assert_eq!(listed, [("x".to_owned(), Element::Text("hi".to_owned()))]);
        assert_eq!(raw(BYTES, b"\x02\0\0\0hi").unwrap(), listed[0].1);
        assert_eq!(raw(BOOL, &[1]).unwrap(), Element::Bool(true));
    }

    #[test]
    fn what_is_not_one_element_is_refused() {
        for bytes in [&b""[..], b"\0\0\0", b"\x03\0\0\0hi", b"\x01\0\0\0hi", b"\xff\xff\xff\xffhi", b"\x01\0\0\0\xff"] {
            assert_eq!(raw(BYTES, bytes).unwrap_err().field, "inputs.x");
        }
        assert!(raw(BOOL, &[1, 0]).is_err() && raw("FP32", &[0; 4]).is_err());
        for shape in [&[][..], &[0], &[2], &[-1], &[1, 2]] {
            assert!(take_inputs(&mut input(BYTES, shape, None)).is_err());
        }
        assert!(take_inputs(&mut input(BYTES, &[1], None)).is_err());
        let mut unequal = ModelInferRequest { raw_input_contents: vec![vec![], vec![]], ..input(BYTES, &[1], None) };
        assert_eq!(take_inputs(&mut unequal).unwrap_err().field, "raw_input_contents");
    }

    #[test]
    fn outputs_are_written_in_both_forms() {
        let (tensor, raw) = output(&["a", "bc"], true);
        assert_eq!((tensor.shape, raw), (vec![2], vec![b"\x01\0\0\0a\x02\0\0\0bc".to_vec()]));
        let (tensor, raw) = output(&["a"], false);
        assert_eq!((tensor.contents.unwrap().bytes_contents, raw.len()), (vec![b"a".to_vec()], 0));
    }
}
