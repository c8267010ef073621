//! Ways ahead in torch's random stream: jumps are skips, and rows drawn for in groups get what all of them get at once.

use fastdecode::decode::draws::Draws;
use fastdecode::decode::jump::Jump;
use fastdecode::decode::torch_rng::{TorchRng, Uniform};

use crate::allocation::allocations;
use crate::tables::tables;

/// More numbers than a block has.
fn following(mut rng: TorchRng) -> Vec<Uniform> {
    (0..700).map(|_| rng.uniform()).collect()
}

/// A generator whose block is new, in use or used up, with numbers skipped or not.
fn stand(mut rng: TorchRng, drawn: u64, skipped: u64) -> TorchRng {
    (0..drawn).for_each(|_| assert!(rng.uniform().value() < 1.0));
    rng.skip_exponentials(skipped);
    rng
}

#[test]
fn a_jump_is_a_skip() {
    let distances = [0, 1, 2, 155, 311, 312, 313, 623, 624, 9968, 9969, 50_257, 1_234_567, 50_000_000];
    for (place, distance) in distances.into_iter().enumerate() {
        let jump = Jump::by(u128::from(distance));
        for table in tables() {
            let starts = [(0, 0), (1, 0), (156, 0), (311, 0), (312, 0), (313, 0), (0, 5), (7, 1000)];
            let few = if distance > 1_000_000 { place % 4..place % 4 + 2 } else { 0..starts.len() };
            for &(drawn, skipped) in &starts[few] {
                let start = stand(TorchRng::with_scans(table.scans(), 5), drawn, skipped);
                let (mut jumping, mut skipping) = (start.clone(), start);
                jumping.jump(&jump);
                skipping.skip_exponentials(distance);
                let what = format!("{}: {distance} after {drawn} drawn and {skipped} skipped", table.name);
                assert_eq!(following(jumping), following(skipping), "{what}");
            }
        }
    }
}

#[test]
fn jumps_add_up() {
    for (a, b) in [(1, 1), (12_345, 1 << 40), (1 << 70, 999), ((1 << 90) + 12_345, (1 << 101) + 54_321)] {
        let mut two = stand(TorchRng::from_seed(8), 3, 2);
        let mut one = two.clone();
        two.jump(&Jump::by(a));
        two.jump(&Jump::by(b));
        one.jump(&Jump::by(a + b));
        assert_eq!(following(one), following(two), "{a} and {b}");
    }
}

#[test]
fn small_jumps_make_a_large_one() {
    let mut one_by_one = TorchRng::from_seed(2);
    let step = Jump::by(1000);
    (0..64).for_each(|_| one_by_one.jump(&step));
    let mut at_once = TorchRng::from_seed(2);
    at_once.jump(&Jump::by(64_000));
    assert_eq!(following(one_by_one), following(at_once));
}

/// What `row` draws as its `t`-th token, counted from the beginning.
fn plainly(seed: u64, width: u64, rows: u64, row: u64, t: u64) -> Vec<Uniform> {
    let mut rng = TorchRng::from_seed(seed);
    rng.skip_exponentials((t * rows + row) * width);
    (0..width.min(3)).map(|_| rng.uniform()).collect()
}

#[test]
fn groups_draw_what_the_whole_batch_draws() {
    // With many rows of a large vocabulary a group jumps, with few it skips.
    for (width, rows, groups) in [
        (1, 1, &[(0, 1)][..]),
        (7, 5, &[(0, 2), (2, 3), (3, 5)]),
        (50_257, 40, &[(0, 2), (10, 11), (11, 39), (39, 40)]),
        (400_000, 3, &[(0, 1), (1, 3)]),
    ] {
        let mut draws = Draws::new(11, width, rows);
        let mut made: Vec<_> = groups.iter().map(|&(first, _)| draws.group(first, 0)).collect();
        for t in 0..4 {
            for (group, &(first, end)) in made.iter_mut().zip(groups) {
                // Some rows are left out, and a row may draw less than its own.
                for row in (first..end).filter(|row| (row + t) % 3 != 1) {
                    let expected = plainly(11, width, rows, row, t);
                    let stream = group.stream(row);
                    let taken = 1 + t as usize % expected.len();
                    let got: Vec<_> = (0..taken).map(|_| stream.uniform()).collect();
                    assert_eq!(got[..], expected[..taken], "row {row} of {rows}, token {t}, width {width}");
                }
                group.next_token();
            }
        }
    }
}

#[test]
fn a_group_may_begin_anywhere() {
    let (width, rows) = (50_257, 64);
    let mut draws = Draws::new(4, width, rows);
    for (first, t) in [(3, 0), (3, 2), (1, 0), (63, 40), (0, 1), (5, 41)] {
        let mut group = draws.group(first, t);
        for later in 0..2 {
            let expected = plainly(4, width, rows, first, t + later);
            let stream = group.stream(first);
            let got: Vec<_> = expected.iter().map(|_| stream.uniform()).collect();
            assert_eq!(got, expected, "row {first}, token {}", t + later);
            group.next_token();
        }
    }
    let mut far = draws.group(7, u64::MAX / 4);
    assert!(far.stream(8).uniform().value() < 1.0, "past what 64 bits count");
    let mut again = draws.group(0, 0);
    assert_eq!(again.stream(0).uniform(), TorchRng::from_seed(4).uniform(), "and back");
}

#[test]
fn going_on_allocates_nothing() {
    // With 40 rows the group jumps, with 2 it skips.
    for rows in [2, 40] {
        let mut group = Draws::new(1, 50_257, rows).group(1, 0);
        let mut go_on = || {
            assert!(group.stream(1).uniform().value() < 1.0);
            group.next_token();
        };
        assert_eq!(allocations(|| (0..3).for_each(|_| go_on())), 0, "{rows} rows");
    }
}

#[test]
fn groups_go_to_other_threads() {
    fn sent<T: Send>(thing: T) -> T {
        thing
    }
    assert!(sent(Draws::new(1, 2, 3).group(0, 0)).stream(1).uniform().value() < 1.0);
}
