//! Which tokens may be drawn, and which are best: the fast ways against plain sorting.

use fastdecode::decode::Scratch;
use fastdecode::decode::logprobs::token_logprobs;
use fastdecode::decode::processors::{Context, Processor, Processors};
use fastdecode::decode::sampler::{Candidate, Unusable, draw, greedy, largest, softmax};
use fastdecode::decode::torch_rng::TorchRng;
use fastdecode::decode::warpers::{Warper, Warpers};
use fastdecode::kernels::Kernels;
use proptest::prelude::*;

use crate::allocation::allocations;
use crate::tables::tables;

/// Scores with many ties, or with none, some of them forbidden.
fn scores() -> impl Strategy<Value = Vec<f32>> {
    let tied = (-20_i32..20).prop_map(|x| x as f32 / 4.0);
    let any = -10.0_f32..10.0;
    let score = prop_oneof![4 => tied, 8 => any, 1 => Just(f32::NEG_INFINITY)];
    prop_oneof![prop::collection::vec(score.clone(), 1..40), prop::collection::vec(score, 200..900)]
}

fn warper() -> impl Strategy<Value = Warper> {
    prop_oneof![
        (0.1_f64..4.0).prop_map(Warper::Temperature),
        prop_oneof![1_usize..8, 1_usize..1000].prop_map(Warper::TopK),
        prop_oneof![Just(0.0), Just(1.0), 0.0_f64..1.0, 0.9_f64..1.0].prop_map(Warper::TopP),
        prop_oneof![Just(0.0), Just(1.0), 0.0_f64..1.0, 0.0_f64..0.1].prop_map(Warper::MinP),
    ]
}

fn probabilities(scores: &[f32]) -> Vec<f32> {
    let candidates: Vec<Candidate> = scores.iter().map(|&score| (0, score)).collect();
    let mut probabilities = Vec::new();
    softmax(Kernels::chosen_scans(), &candidates, &mut probabilities).expect("a finite score");
    probabilities
}

/// What transformers writes: every warper masks scores of the whole vocabulary, after a full sort.
fn plainly(list: &[Warper], keep: usize, scores: &[f32]) -> Vec<Candidate> {
    let mut scores = scores.to_vec();
    for warper in list {
        let probabilities = probabilities(&scores);
        let mut rising: Vec<usize> = (0..scores.len()).collect();
        rising.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        match *warper {
            Warper::Temperature(temperature) => scores.iter_mut().for_each(|s| *s /= temperature as f32),
            Warper::TopK(k) => {
                let bar = scores[rising[scores.len().saturating_sub(k.max(keep))]];
                scores.iter_mut().filter(|s| **s < bar).for_each(|s| *s = f32::NEG_INFINITY);
            }
            Warper::TopP(p) => {
                let mut mass = 0.0_f64;
                for (place, &id) in rising.iter().enumerate() {
                    mass += f64::from(probabilities[id]);
                    if mass as f32 <= (1.0 - p) as f32 && place + keep < scores.len() {
                        scores[id] = f32::NEG_INFINITY;
                    }
                }
            }
            Warper::MinP(p) => {
                let bar = p as f32 * probabilities.iter().copied().fold(0.0, f32::max);
                // Of equal scores the lower ids are kept.
                rising.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
                for &id in &rising[..scores.len().saturating_sub(keep)] {
                    if probabilities[id] < bar {
                        scores[id] = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
    let kept = scores.iter().enumerate().filter(|(_, s)| **s > f32::NEG_INFINITY);
    kept.map(|(id, &score)| (id as u32, score)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn warpers_keep_what_plain_sorting_keeps(
        scores in scores(),
        list in prop::collection::vec(warper(), 0..4),
        keep in 1_usize..4,
    ) {
        prop_assume!(scores.iter().any(|s| s.is_finite()));
        let expected = plainly(&list, keep, &scores);
        let warpers = Warpers::new(list, keep);
        for table in tables() {
            let (mut scratch, mut spoilt) = (Scratch::new(table.scans()), scores.clone());
            warpers.apply(&mut spoilt, &mut scratch).expect("a finite score");
            prop_assert_eq!(&scratch.candidates, &expected, "{}", table.name);
        }
    }

    #[test]
    fn a_temperature_of_any_size_keeps_what_plain_sorting_keeps(
        scores in scores(),
        size in prop::sample::select(vec![1e-42_f32, 1e-38, 1e-30, 1e-3, 1.0, 1e30, 1e37]),
        temperature in prop::sample::select(vec![1e-37, 1e-10, 0.3, 0.8, 1e9, 1e38]),
        k in 1_usize..30,
    ) {
        let scores: Vec<f32> = scores.iter().map(|score| score * size).collect();
        let list = vec![Warper::Temperature(temperature), Warper::TopK(k)];
        let divided = scores.iter().map(|score| score / temperature as f32);
        prop_assume!(divided.clone().any(|s| s.is_finite()) && !divided.clone().any(|s| s == f32::INFINITY));
        let expected = plainly(&list, 1, &scores);
        let mut scratch = Scratch::default();
        Warpers::new(list, 1).apply(&mut scores.clone(), &mut scratch).expect("a finite score");
        prop_assert_eq!(&scratch.candidates, &expected);
    }

    #[test]
    fn probabilities_are_a_softmax(scores in prop::collection::vec(-30.0_f32..30.0, 1..300)) {
        let sum: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        for (score, probability) in scores.iter().zip(probabilities(&scores)) {
            let exact = f64::from(*score).exp() / sum;
            // The difference to the best score, up to 60, is rounded to f32, as torch does it.
            prop_assert!((f64::from(probability) - exact).abs() <= 1e-5 * exact);
        }
    }

    #[test]
    fn the_largest_are_those_of_a_sort(scores in scores(), count in 0_usize..60) {
        let mut expected: Vec<Candidate> = scores.iter().enumerate().map(|(id, &s)| (id as u32, s)).collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let best = expected[0].0;
        expected.truncate(count);
        for table in tables() {
            prop_assert_eq!(greedy(table.scans(), &scores).expect("no NaN"), best, "{}", table.name);
            let mut scratch = Scratch::new(table.scans());
            scratch.best.push((9, 9.0));
            largest(&scores, count, &mut scratch);
            prop_assert_eq!(&scratch.best, &expected, "{}", table.name);
        }
    }

    #[test]
    fn logprobs_are_a_log_softmax(scores in prop::collection::vec(-30.0_f32..30.0, 1..300), count in 0_usize..9) {
        let token = (scores.len() / 2) as u32;
        let sum: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        let exact = |id: u32| f64::from(scores[id as usize]) - sum.ln();
        let got = token_logprobs(&scores, token, count, &mut Scratch::default()).expect("finite scores");
        prop_assert!((f64::from(got.logprob) - exact(token)).abs() < 1e-5);
        prop_assert_eq!(got.best.len(), count.min(scores.len()));
        for &(id, logprob) in &got.best {
            prop_assert!((f64::from(logprob) - exact(id)).abs() < 1e-5);
        }
        prop_assert!(got.best.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[test]
fn scores_without_a_choice_are_named() {
    const INFINITY: f32 = f32::INFINITY;
    let draw_from = |scores: &[f32]| {
        let mut scratch = Scratch::default();
        let warpers = Warpers::new(vec![Warper::TopP(0.5)], 1);
        warpers.apply(&mut scores.to_vec(), &mut scratch).map(|()| scratch.candidates)
    };
    let greedy = |scores: &[f32]| greedy(Kernels::chosen_scans(), scores);
    for long in [1, 40] {
        let with = |score: f32| [vec![0.0; long], vec![score], vec![1.0; long]].concat();
        assert_eq!(greedy(&with(f32::NAN)), Err(Unusable::Nan));
        assert_eq!(draw_from(&with(f32::NAN)), Err(Unusable::Nan));
        assert_eq!(greedy(&with(INFINITY)), Ok(long as u32));
        assert_eq!(draw_from(&with(INFINITY)), Err(Unusable::Infinite));
        // As torch.argmax has it.
        assert_eq!(greedy(&vec![-INFINITY; long]), Ok(0));
        assert_eq!(draw_from(&vec![-INFINITY; long]), Err(Unusable::AllForbidden));
    }
}

#[test]
fn a_used_scratch_allocates_nothing() {
    let scores: Vec<f32> =
        (0..5000_u32).map(|id| (id.wrapping_mul(0x9e37_79b1) >> 20) as f32 / 64.0).collect();
    let warpers = Warpers::new(
        vec![Warper::Temperature(0.7), Warper::TopK(50), Warper::TopP(0.9), Warper::MinP(0.01)],
        2,
    );
    let processors = Processors::new(vec![Processor::RepetitionPenalty { penalty: 1.5 }]);
    let context = Context { tokens: &[7, 1, 7], length: 3, generated: 0, source: &[] };
    let (mut spoilt, mut scratch) = (scores.clone(), Scratch::default());
    let mut rng = TorchRng::from_seed(1);
    let mut choose = || {
        spoilt.copy_from_slice(&scores);
        processors.apply(&context, &mut spoilt, &mut scratch);
        warpers.apply(&mut spoilt, &mut scratch).expect("finite scores");
        let Scratch { scans, candidates, probabilities, .. } = &mut scratch;
        draw(scans, &mut rng, candidates, spoilt.len(), probabilities).expect("finite scores");
        largest(&scores, 20, &mut scratch);
    };
    choose();
    assert_eq!(allocations(|| (0..5).for_each(|_| choose())), 0, "after the first choice");
}

#[test]
fn processors_pass_over_ids_without_a_score() {
    // An embedding may have more rows than the head.
    let tokens = [7, 1, 7, 1];
    let context = Context { tokens: &tokens, length: 4, generated: 0, source: &tokens };
    let mut scores = [4.0, -4.0, 4.0];
    let list = vec![
        Processor::RepetitionPenalty { penalty: 2.0 },
        Processor::EncoderRepetitionPenalty { penalty: 4.0 },
        Processor::NoRepeatNgram { size: 3 },
        Processor::MinNewTokens { tokens: 1, ending: vec![2, 9] },
    ];
    Processors::new(list).apply(&context, &mut scores, &mut Scratch::default());
    assert_eq!(scores, [4.0, -2.0, f32::NEG_INFINITY]);
}
