//! What ONNX Runtime says, in the words that may be told.

/// Where nothing else is left.
const NO_REASON: &str = "the runtime gave no reason that can be shown";

/// What the runtime says of a run, without its source, files of this machine, and names of the model's inside that look like files.
pub(super) fn for_clients(message: &str) -> String {
    let is_file = |word: &str| {
        let word = word.trim_start_matches(['(', '\'', '"', '[']);
        word.starts_with('/') || word.contains("onnxruntime")
    };
    let said = without_source(message);
    let words: Vec<_> = said.split_whitespace().filter(|word| !is_file(word)).collect();
    if words.is_empty() { NO_REASON.to_owned() } else { words.join(" ") }
}

/// Takes out the file and function of the runtime's source with which some of its messages begin.
pub(super) fn without_source(message: &str) -> String {
    let message = message.trim();
    let Some(end) = message.rfind("::") else {
        return message.to_owned();
    };
    let tail = message[end..].split_once(") ").map_or("", |(_, tail)| tail).trim();
    if tail.is_empty() { NO_REASON.to_owned() } else { tail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_paths_and_functions_of_the_runtime_are_taken_out_of_its_messages() {
        let message = "/onnxruntime_src/onnxruntime/core/graph/model_load_utils.h:46 void onnxruntime::utils::Validate(const \
                       std::map<std::string, int>&, bool) ONNX Runtime only guarantees support for official opsets. Opset 99 \
                       is under development.";
        assert_eq!(
            without_source(message),
            "ONNX Runtime only guarantees support for official opsets. Opset 99 is under development."
        );
        assert_eq!(without_source("indices element out of data bounds"), "indices element out of data bounds");
        assert_eq!(without_source("onnxruntime::f()"), NO_REASON);
    }

    #[test]
    fn a_client_is_told_no_file_of_this_machine_and_no_node_of_the_model() {
        for (said, told) in [
            (
                "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:47 onnxruntime::ReshapeHelper::\
                 ReshapeHelper(const onnxruntime::TensorShape&, bool) The input tensor cannot be reshaped to the requested \
                 shape. Input shape:{1,64}, requested shape:{1,32}",
                "The input tensor cannot be reshaped to the requested shape. Input shape:{1,64}, requested shape:{1,32}",
            ),
            ("/onnxruntime_src/core/allocator.cc:12 Failed to allocate", "Failed to allocate"),
            ("cannot open (/cache/0a1b/model.onnx): no such file", "cannot open no such file"),
            ("'/encoder/layer.0/MatMul' got 3 dimensions", "got 3 dimensions"),
            ("/onnxruntime_src/core/a.cc:1", NO_REASON),
            (
                "indices element out of data bounds, idx=9 must be within the inclusive range [-4,3]",
                "indices element out of data bounds, idx=9 must be within the inclusive range [-4,3]",
            ),
        ] {
            assert_eq!(for_clients(said), told);
        }
    }
}
