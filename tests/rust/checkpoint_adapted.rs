//! Adapters over a checkpoint: what is read is what a naive merge gives, wherever a read begins and ends, and tied
//! tensors stay one or come apart as they should.

use std::sync::Arc;

use fastdecode::Error;
use fastdecode::checkpoint::{Adapter, Checkpoint, Dtype, Edit, Layout, MemoryTensor, ModuleKind};
use proptest::prelude::*;

const VOCABULARY: [&str; 2] = ["embed.weight", "head.weight"];

fn kind(module: &str) -> Option<ModuleKind> {
    match module {
        "embed" => Some(ModuleKind::Embedding),
        "head" | "linear" => Some(ModuleKind::Linear),
        "conv" => Some(ModuleKind::Conv1d),
        _ => None,
    }
}

fn layout(tied: bool) -> Layout<'static> {
    Layout { prefix: "model.", vocabulary: &VOCABULARY, bias: None, tied, kind }
}

/// Small whole numbers, so that every sum and product in f32 is exact.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 13 + i * i % 5) % 11) as f32 - 5.0).collect()
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&x| match dtype {
            Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        })
        .collect()
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize], values: &[f32]) -> MemoryTensor {
    MemoryTensor { name: name.into(), dtype, shape: shape.into(), bytes: Arc::new(bytes(dtype, values)) }
}

fn checkpoint(tensors: Vec<MemoryTensor>) -> Checkpoint {
    Checkpoint::from_memory(tensors).unwrap()
}

/// A checkpoint of f32 tensors of numbers, by name, shape and seed.
fn filled(tensors: &[(&str, &[usize], usize)]) -> Checkpoint {
    let one = |&(name, shape, seed): &(&str, &[usize], usize)| {
        tensor(name, Dtype::F32, shape, &numbers(shape.iter().product(), seed))
    };
    checkpoint(tensors.iter().map(one).collect())
}

fn adapter(tensors: &[(&str, &[usize], usize)], edits: Vec<Edit>) -> Adapter {
    Adapter { tensors: Arc::new(filled(tensors)), edits }
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let info = checkpoint.get(name).unwrap_or_else(|| panic!("a tensor {name}"));
    assert_eq!(info.dtype, Dtype::F32);
    let mut found = vec![0; info.bytes];
    checkpoint.read(info, 0, &mut found).unwrap();
    found.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn product(target: &str, rank: usize, scale: f32, embedding: bool) -> Edit {
    Edit::Product { target: target.into(), down: "A".into(), up: "B".into(), rank, scale, embedding }
}

fn replace(target: &str, tensor: &str, apart: bool) -> Edit {
    Edit::Replace { target: target.into(), tensor: tensor.into(), apart }
}

/// `B A`, `outputs × inputs`.
fn multiplied(b: &[f32], a: &[f32], [outputs, rank, inputs]: [usize; 3]) -> Vec<f32> {
    let one = |o: usize, i: usize| (0..rank).map(|k| b[o * rank + k] * a[k * inputs + i]).sum();
    (0..outputs * inputs).map(|at| one(at / inputs, at % inputs)).collect()
}

proptest! {
    #[test]
    fn any_part_of_a_merged_tensor_is_that_of_the_naive_merge(
        (outputs, inputs, rank) in (1usize..9, 1usize..9, 1usize..4),
        which in 0usize..3,
        dtype in 0usize..4,
        (start, length) in (0usize..100, 0usize..100),
        twice in any::<bool>(),
    ) {
        let (name, flipped) = [("linear", false), ("conv", true), ("embed", true)][which];
        let shape = if flipped { [inputs, outputs] } else { [outputs, inputs] };
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64][dtype];
        let (old, a, b) = (numbers(outputs * inputs, 1), numbers(rank * inputs, 2), numbers(outputs * rank, 3));
        let target = format!("{name}.weight");
        let base = checkpoint(vec![tensor(&format!("model.{target}"), dtype, &shape, &old)]);
        let parts: [(&str, &[usize], usize); 2] = [("A", &[rank, inputs], 2), ("B", &[outputs, rank], 3)];
        let one = adapter(&parts, vec![product(&target, rank, 0.5, name == "embed")]);
        let adapters = vec![one; 1 + usize::from(twice)];
        let (merged, rows) = base.adapted(&layout(false), &adapters).unwrap();
        prop_assert_eq!(rows, None);

        let delta = multiplied(&b, &a, [outputs, rank, inputs]);
        let wanted: Vec<f32> = (0..outputs * inputs)
            .map(|at| {
                let from = if flipped { at % outputs * inputs + at / outputs } else { at };
                old[at] + delta[from] * 0.5 * adapters.len() as f32
            })
            .collect();
        let info = merged.get(&format!("model.{target}")).unwrap();
        prop_assert_eq!(&info.shape, &shape.to_vec());
        let start = start.min(wanted.len());
        let end = (start + length).min(wanted.len());
        let mut part = vec![0; 4 * (end - start)];
        merged.read(info, 4 * start, &mut part).unwrap();
        let got: Vec<f32> = part.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        prop_assert_eq!(got, &wanted[start..end]);
    }
}

#[test]
fn sums_and_rows_and_replacements() {
    let base = filled(&[("bias", &[3], 1), ("embed.weight", &[4, 2], 2), ("norm", &[3], 3)]);
    let edits = vec![
        Edit::Sum { target: "bias".into(), tensor: "more".into(), scale: 2.0 },
        Edit::Rows { target: "embed.weight".into(), tensor: "rows".into(), rows: vec![3, 1, 3] },
        replace("norm", "more", false),
    ];
    let one = adapter(&[("more", &[3], 4), ("rows", &[3, 2], 5)], edits);
    let (merged, _) = base.adapted(&layout(false), &[one]).unwrap();
    let (old, more) = (numbers(3, 1), numbers(3, 4));
    assert_eq!(read(&merged, "bias"), (0..3).map(|i| old[i] + 2.0 * more[i]).collect::<Vec<_>>());
    assert_eq!(read(&merged, "norm"), more);
    let (old, new) = (numbers(8, 2), numbers(6, 5));
    let wanted = [&old[0..2], &new[2..4], &old[4..6], &new[4..6]].concat();
    assert_eq!(read(&merged, "embed.weight"), wanted, "of a row that comes twice the later one counts");
}

const EMBED: (&str, &[usize], usize) = ("model.embed.weight", &[4, 2], 2);
const HEAD: (&str, &[usize], usize) = ("head.weight", &[4, 2], 2);
const OTHER: (&str, &[usize], usize) = ("head.weight", &[4, 2], 9);

#[test]
fn what_is_added_under_one_name_of_a_tied_tensor_is_added_to_it() {
    let parts: [(&str, &[usize], usize); 2] = [("A", &[1, 2], 6), ("B", &[4, 1], 7)];
    let delta = multiplied(&numbers(4, 7), &numbers(2, 6), [4, 1, 2]);
    let sum: Vec<f32> = std::iter::zip(numbers(8, 2), &delta).map(|(x, d)| x + d).collect();
    let edit = || vec![product("head.weight", 1, 1.0, false)];
    for file in [&[EMBED][..], &[EMBED, HEAD], &[HEAD]] {
        let (merged, _) = filled(file).adapted(&layout(true), &[adapter(&parts, edit())]).unwrap();
        assert_eq!(merged.len(), 1, "one tensor, whichever names the file has");
        assert_eq!(read(&merged, merged.names().next().unwrap()), sum);
    }
    // A head with values of its own is one of its own, and so is an equal one that nothing ties.
    for (file, tied) in [(&[EMBED, OTHER], true), (&[EMBED, HEAD], false)] {
        let (merged, _) = filled(file).adapted(&layout(tied), &[adapter(&parts, edit())]).unwrap();
        assert_eq!(read(&merged, "model.embed.weight"), numbers(8, 2));
        let wanted: Vec<f32> = std::iter::zip(numbers(8, file[1].2), &delta).map(|(x, d)| x + d).collect();
        assert_eq!(read(&merged, "head.weight"), wanted);
    }
}

#[test]
fn what_was_saved_whole_comes_apart_from_what_was_tied_to_it() {
    let one = || adapter(&[("new", &[4, 2], 8)], vec![replace("embed.weight", "new", true)]);
    let (merged, _) = filled(&[EMBED]).adapted(&layout(true), &[one()]).unwrap();
    assert_eq!(read(&merged, "model.embed.weight"), numbers(8, 8));
    assert_eq!(read(&merged, "head.weight"), numbers(8, 2));
    // Later adapters see two tensors, even where the saved one has the values of the other.
    let parts: [(&str, &[usize], usize); 2] = [("A", &[1, 2], 6), ("B", &[4, 1], 7)];
    let copy = adapter(&[("new", &[4, 2], 2)], vec![replace("embed.weight", "new", true)]);
    let added = adapter(&parts, vec![product("head.weight", 1, 1.0, false)]);
    let (merged, _) = filled(&[EMBED]).adapted(&layout(true), &[copy, added]).unwrap();
    assert_eq!(read(&merged, "model.embed.weight"), numbers(8, 2));
    assert_ne!(read(&merged, "head.weight"), numbers(8, 2));
}

#[test]
fn rows_of_the_embedding_are_those_of_a_tied_head_whatever_it_holds() {
    let rows = || Edit::Rows { target: "embed.weight".into(), tensor: "rows".into(), rows: vec![1] };
    let row = numbers(2, 5);
    let heads = |tied: bool, edits: Vec<Vec<Edit>>| {
        let one = |edits| adapter(&[("rows", &[1, 2], 5), ("new", &[4, 2], 8)], edits);
        let adapters: Vec<Adapter> = edits.into_iter().map(one).collect();
        let (merged, _) = filled(&[EMBED, OTHER]).adapted(&layout(tied), &adapters).unwrap();
        assert_eq!(read(&merged, "model.embed.weight")[2..4], row);
        read(&merged, "head.weight")[2..4] == row
    };
    assert!(heads(true, vec![vec![rows()]]));
    assert!(!heads(false, vec![vec![rows()]]));
    // The merge of an adapter before has seen that they are two.
    assert!(!heads(true, vec![vec![], vec![rows()]]));
}

#[test]
fn a_vocabulary_may_come_with_other_rows() {
    for rows in [3, 6] {
        let shape = [rows, 2];
        let one = adapter(&[("new", &shape, 8)], vec![replace("embed.weight", "new", false)]);
        let (merged, found) = filled(&[EMBED, OTHER]).adapted(&layout(true), &[one]).unwrap();
        assert_eq!(found, Some(rows));
        assert_eq!(merged.names().collect::<Vec<_>>(), ["model.embed.weight"], "tied anew");
        assert_eq!(read(&merged, "model.embed.weight"), numbers(2 * rows, 8));
    }
    let one = adapter(&[("new", &[6, 2], 8)], vec![replace("embed.weight", "new", true)]);
    refused(&[EMBED], true, one, "head.weight", "6 rows");
    let one = adapter(&[("new", &[6, 2], 8)], vec![replace("embed.weight", "new", false)]);
    refused(&[EMBED, OTHER], false, one, "head.weight", "6 rows");
    let one = adapter(&[("new", &[0, 2], 8)], vec![replace("embed.weight", "new", false)]);
    refused(&[EMBED], true, one, "new", "shape [4, 2]");
}

#[track_caller]
fn refused(base: &[(&str, &[usize], usize)], tied: bool, one: Adapter, at: &str, phrase: &str) {
    let error = filled(base).adapted(&layout(tied), &[one]).expect_err("an adapter that cannot be applied");
    assert!(matches!(&error, Error::Checkpoint { tensor, .. } if tensor.as_deref() == Some(at)), "{error:?}");
    assert!(error.to_string().contains(phrase), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    let base: [(&str, &[usize], usize); 3] = [("linear.weight", &[4, 3], 1), ("norm.weight", &[3], 1), EMBED];
    let of = |a: &[usize], b: &[usize], edit| adapter(&[("A", a, 1), ("B", b, 2)], vec![edit]);
    let linear = |rank| product("linear.weight", rank, 1.0, false);
    let cases = [
        (of(&[2, 3], &[4, 2], linear(1)), "A", "shape [1, 3]"),
        (of(&[2, 3], &[4, 1], linear(2)), "B", "shape [4, 2]"),
        (of(&[2, 4], &[3, 2], linear(2)), "A", "shape [2, 3]"),
        (of(&[0, 3], &[4, 0], linear(0)), "A", "at least 1"),
        (of(&[2], &[4, 2], linear(2)), "A", "[2]"),
        (of(&[2, 3], &[4, 2], product("linear.weight", 2, 1.0, true)), "A", "lora_A and lora_B"),
        (of(&[2, 4], &[2, 2], product("embed.weight", 2, 1.0, false)), "A", "lora_embedding_A"),
        (of(&[2, 4], &[2, 2], product("norm.weight", 2, 1.0, false)), "A", "no matrices"),
        (of(&[2, 3], &[4, 2], product("conv.weight", 2, 1.0, false)), "A", "conv.weight"),
        (of(&[2, 3], &[4, 2], replace("norm.weight", "A", false)), "A", "shape [3]"),
        (of(&[2, 3], &[4, 2], replace("linear.weight", "A", false)), "A", "shape [4, 3]"),
        (of(&[2, 3], &[4, 2], replace("norm.weight", "C", false)), "C", "none among"),
        (
            of(
                &[2, 2],
                &[4, 2],
                Edit::Rows { target: "embed.weight".into(), tensor: "A".into(), rows: vec![1, 4] },
            ),
            "A",
            "below 4",
        ),
        (
            of(
                &[2, 2],
                &[4, 2],
                Edit::Rows { target: "embed.weight".into(), tensor: "A".into(), rows: vec![1] },
            ),
            "A",
            "[1, 2]",
        ),
        (
            of(
                &[2, 2],
                &[4, 2],
                Edit::Rows { target: "norm.weight".into(), tensor: "A".into(), rows: vec![1] },
            ),
            "norm.weight",
            "a matrix",
        ),
        (
            of(&[2, 2], &[4, 2], Edit::Sum { target: "norm.weight".into(), tensor: "A".into(), scale: 1.0 }),
            "A",
            "shape [3]",
        ),
    ];
    for (one, at, phrase) in cases {
        refused(&base, true, one, at, phrase);
    }
    let whole =
        MemoryTensor { name: "A".into(), dtype: Dtype::I32, shape: vec![3], bytes: Arc::new(vec![0u8; 12]) };
    let one = Adapter {
        tensors: Arc::new(checkpoint(vec![whole])),
        edits: vec![replace("norm.weight", "A", false)],
    };
    refused(&base, true, one, "A", "F32");
}
