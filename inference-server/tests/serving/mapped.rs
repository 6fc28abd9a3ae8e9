//! Models whose weights stay in their file: they answer as if it had been read as a whole, whatever becomes of it.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use ortolan_protocol::oip::Datatype;
use ortolan_server::engine::{self, Dimension, Engine, Loading, OnnxEngine, RunError};
use ortolan_server::tensor::{Data, Shape, Tensor};

use crate::common::{model, runtime_library};

const ROWS: usize = 512;
const COLUMNS: usize = 8;

/// As it is loaded where nothing is mapped, and mapped from a file of our own, or of others.
const PLAIN: Loading = Loading { threads: 1, instances: 1, is_ours: false, mapped: u64::MAX };
const OURS: Loading = Loading { is_ours: true, mapped: 1, ..PLAIN };
const FOREIGN: Loading = Loading { is_ours: false, ..OURS };

fn load(path: &Path, loading: Loading) -> OnnxEngine {
    engine::initialize(&runtime_library()).unwrap();
    engine::load(path, &[], loading).unwrap()
}

fn is_mapped(path: &Path) -> bool {
    let path = path.canonicalize().unwrap();
    fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| line.ends_with(path.to_str().unwrap()))
}

/// A field of a protobuf message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap();
    // Longer than it has to be, which is allowed.
    let length = [0, 7, 14, 21].map(|shift| (length >> shift & 0x7f) as u8 | if shift < 21 { 0x80 } else { 0 });
    [&[number << 3 | 2], &length[..], value].concat()
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// An input or output with one dimension that has a name, and perhaps one more.
fn value_info(name: &str, kind: u8, columns: Option<u8>) -> Vec<u8> {
    let mut shape = field(1, &field(2, b"n"));
    shape.extend(columns.map(|columns| field(1, &number(1, columns))).unwrap_or_default());
    let tensor = [number(1, kind), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// ids INT64 `[n]` → y `[n, COLUMNS]`: the rows of a table of these elements, which lies further back the longer `padding` is.
fn table(kind: u8, elements: &[u8], padding: usize) -> Vec<u8> {
    table_with(kind, &field(9, elements), padding)
}

/// The same, with what else says where the elements are.
fn table_with(kind: u8, elements: &[u8], padding: usize) -> Vec<u8> {
    let columns = u8::try_from(COLUMNS).unwrap();
    let node = [field(1, b"w"), field(1, b"ids"), field(2, b"y"), field(4, b"Gather")].concat();
    let rows = [1 << 3, 0x80, 4];
    let weights = [&rows[..], &number(1, columns), &number(2, kind), &field(8, b"w"), elements].concat();
    let inputs_and_outputs =
        [field(11, &value_info("ids", 7, None)), field(12, &value_info("y", kind, Some(columns)))].concat();
    let graph = [field(1, &node), field(2, b"table"), field(5, &weights), inputs_and_outputs].concat();
    [number(1, 8), field(2, &vec![b'p'; padding]), field(7, &graph), field(8, &number(2, 17))].concat()
}

fn rows_of(engine: &OnnxEngine) -> Bytes {
    let ids: Vec<u8> = (0..ROWS as u64).flat_map(u64::to_le_bytes).collect();
    let ids = Tensor { datatype: Datatype::Int64, shape: Shape::from_slice(&[ROWS]), data: Data::Fixed(ids.into()) };
    match engine.run(&[ids], &[0]).unwrap().remove(0).data {
        Data::Fixed(bytes) => bytes,
        Data::Strings(_) => unreachable!(),
    }
}

fn some_bytes(count: usize, below: u8) -> Vec<u8> {
    (0..below).cycle().take(count).collect()
}

#[test]
fn weights_of_every_type_are_mapped_bit_for_bit_wherever_they_lie_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    // By the numbers of TensorProto.DataType.
    let kinds =
        [(1, 4), (2, 1), (3, 1), (4, 2), (5, 2), (6, 4), (7, 8), (9, 1), (10, 2), (11, 8), (12, 4), (13, 8), (16, 2)];
    for (kind, size) in kinds {
        for padding in 0..size {
            let elements = some_bytes(ROWS * COLUMNS * size, if kind == 9 { 2 } else { 251 });
            for (name, loading) in [("ours", OURS), ("foreign", FOREIGN)] {
                let path = folder.path().join(format!("{kind}-{padding}-{name}.onnx"));
                fs::write(&path, table(kind, &elements, padding)).unwrap();
                let engine = load(&path, loading);
                assert_eq!(is_mapped(&path), loading.is_ours, "type {kind}");
                assert_eq!(rows_of(&engine), elements, "type {kind} after {padding} bytes");
                drop(engine);
                assert!(!is_mapped(&path), "it is given back");
            }
        }
    }
}

#[test]
fn what_others_do_to_their_file_after_it_was_loaded_does_not_reach_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let [file, link] = ["m.onnx", "link.onnx"].map(|name| folder.path().join(name));
    let elements = some_bytes(ROWS * COLUMNS * 4, 251);
    fs::write(&file, table(1, &elements, 0)).unwrap();
    // As config maps are mounted.
    std::os::unix::fs::symlink("m.onnx", &link).unwrap();
    let engine = load(&link, FOREIGN);
    fs::write(&file, table(1, &vec![0; elements.len()], 0)).unwrap();
    assert_eq!(rows_of(&engine), elements);
    fs::write(&file, "").unwrap();
    assert_eq!(rows_of(&engine), elements);
}

#[test]
fn weights_that_say_that_they_are_where_they_are_stay_there_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let elements = some_bytes(ROWS * COLUMNS, 251);
    // TensorProto.data_location, 0: DEFAULT.
    fs::write(&path, table_with(3, &[field(9, &elements), number(14, 0)].concat(), 0)).unwrap();
    let engine = load(&path, OURS);
    assert!(is_mapped(&path));
    assert_eq!(rows_of(&engine), elements);
}

#[test]
fn a_model_that_would_stay_as_large_is_read_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let elements = some_bytes(ROWS * COLUMNS, 251);
    fs::write(&path, table(3, &elements, 2 * elements.len())).unwrap();
    let engine = load(&path, OURS);
    assert!(!is_mapped(&path));
    assert_eq!(rows_of(&engine), elements);
}

#[test]
fn small_weights_are_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let elements = some_bytes(ROWS * COLUMNS * 4, 251);
    fs::write(&path, table(1, &elements, 0)).unwrap();
    let engine = load(&path, Loading { mapped: Loading::MAPPED, ..OURS });
    assert!(!is_mapped(&path));
    assert_eq!(rows_of(&engine), elements);
}

#[test]
fn a_damaged_model_is_judged_as_if_nothing_was_mapped() {
    engine::initialize(&runtime_library()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let elements = some_bytes(ROWS * COLUMNS, 251);
    let whole = table(3, &elements, 0);
    let start = whole.windows(elements.len()).position(|window| window == elements).unwrap();
    for position in (0..start).chain(start + elements.len()..whole.len()) {
        for flipped in [0x01, 0x41, 0x80] {
            let mut damaged = whole.clone();
            damaged[position] ^= flipped;
            fs::write(file.path(), &damaged).unwrap();
            let [plain, mapped] = [PLAIN, FOREIGN].map(|loading| engine::load(file.path(), &[], loading).map(|_| ()));
            assert_eq!(mapped, plain, "byte {position}, {flipped}");
        }
    }
}

/// What a model answers to some numbers.
fn answers(engine: &OnnxEngine) -> Result<Vec<Tensor>, RunError> {
    let signature = engine.signature().clone();
    let inputs: Vec<Tensor> = signature
        .inputs
        .iter()
        .map(|spec| {
            let sizes = spec.shape.iter().map(|dimension| match dimension {
                Dimension::Fixed(size) => *size,
                Dimension::Dynamic(_) => 3,
            });
            let mut tensor = Tensor::zeros(spec.datatype, sizes.collect());
            let bytes = tensor.byte_size();
            if matches!(spec.datatype, Datatype::Fp32 | Datatype::Fp64) {
                tensor.data = Data::Fixed((0x30..0x40).cycle().take(bytes).collect());
            }
            tensor
        })
        .collect();
    engine.run(&inputs, &(0..signature.outputs.len()).collect::<Vec<_>>())
}

#[test]
fn the_models_of_the_tests_answer_bit_for_bit_as_if_nothing_was_mapped() {
    for name in [
        "mlp",
        "add",
        "classifier",
        "types",
        "sequence",
        "gather",
        "fixed",
        "scalar",
        "cross",
        "nonzero",
        "log",
        "zipmap",
    ] {
        let path = model(name);
        let plain = answers(&load(&path, PLAIN));
        for loading in [OURS, FOREIGN] {
            assert_eq!(answers(&load(&path, loading)), plain, "{name}");
        }
    }
}
