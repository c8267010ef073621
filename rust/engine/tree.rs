//! What scored items have in common: a tree of runs of tokens, so that what several items begin with is read once.

use std::ops::Range;

/// Tokens that are read, and what is asked of the places behind them.
#[derive(Debug, Clone)]
pub struct Item {
    /// What is read, from the first token of its sequence on.
    pub ids: Vec<u32>,
    /// What is asked behind the last of these tokens, one after each: how probable which token is there, if any.
    pub targets: Vec<Option<u32>>,
    /// Tokens of the whole sequence, of which the last ones may not be read: it says how positions count.
    pub length: usize,
    /// Number of the start that its sequence has.
    pub start: usize,
}

/// A token whose probability is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    /// The position behind which it would follow.
    pub(super) position: usize,
    pub(super) token: u32,
    /// The item that asks, and the place among its targets.
    pub(super) item: usize,
    pub(super) place: usize,
}

/// A run of tokens that all items below it have.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: Option<usize>,
    /// One of its items, whose tokens these are.
    pub(super) item: usize,
    pub(super) tokens: Range<usize>,
    /// In the order of their positions.
    pub(super) questions: Vec<Question>,
    pub(super) children: Vec<usize>,
}

/// Tokens that must be spared before a common beginning is read by itself: another step reads all weights once more, which takes as long
/// as some rows do.
const WORTH: usize = 32;

/// How many tokens two lists begin with in common.
fn common(one: &[u32], other: &[u32]) -> usize {
    std::iter::zip(one, other).take_while(|(a, b)| a == b).count()
}

/// Divides items into runs of tokens; parents come before their children. `held` says how many tokens a start has, and `is_long` whether
/// positions of an item count otherwise than those of others, with which it then shares nothing.
pub(super) fn tree(
    items: &[Item],
    held: impl Fn(usize) -> usize,
    is_long: impl Fn(&Item) -> bool,
) -> Vec<Node> {
    let mut order: Vec<usize> = (0..items.len()).filter(|&i| !items[i].targets.is_empty()).collect();
    let key = |i: usize| (items[i].start, is_long(&items[i]));
    order.sort_by(|&a, &b| key(a).cmp(&key(b)).then_with(|| items[a].ids.cmp(&items[b].ids)));
    let mut nodes: Vec<Node> = Vec::new();
    // Items of the order, the tokens that have been read of them, and where.
    let mut rest: Vec<(Range<usize>, usize, Option<usize>)> = Vec::new();
    let runs = order.chunk_by(|&a, &b| key(a) == key(b)).rev();
    let mut end = order.len();
    for run in runs {
        rest.push((end - run.len()..end, held(items[run[0]].start), None));
        end -= run.len();
    }
    while let Some((range, read, parent)) = rest.pop() {
        let of = &order[range.clone()];
        let ids = |i: usize| &items[i].ids;
        // In this order what the first and the last one share, all do, and those that end come first. A run goes on behind these where
        // all others do with one token.
        let (mut going, mut end, mut first, mut spared) = (of, read, None, 0);
        loop {
            let shared = match *going {
                [one] => ids(one).len(),
                _ => common(ids(going[0]), ids(going[going.len() - 1])),
            };
            spared += (going.len() - 1) * (shared - end);
            end = shared;
            first = first.or(Some(shared));
            going = &going[going.partition_point(|&i| ids(i).len() == end)..];
            if going.is_empty() || ids(going[0])[end] != ids(going[going.len() - 1])[end] {
                break;
            }
        }
        let is_node = going.is_empty() || spared >= WORTH;
        let (groups, split, below) = if is_node {
            let number = nodes.len();
            if let Some(parent) = parent {
                nodes[parent].children.push(number);
            }
            let (item, tokens) = (of[of.len() - 1], read..end);
            let questions = questions(items, of, tokens.clone());
            nodes.push(Node { parent, item, tokens, questions, children: Vec::new() });
            (going, end, (end, Some(number)))
        } else {
            (of, first.unwrap_or(end), (read, parent))
        };
        let mut end = range.end;
        for group in groups.chunk_by(|&a, &b| ids(a).get(split) == ids(b).get(split)).rev() {
            rest.push((end - group.len()..end, below.0, below.1));
            end -= group.len();
        }
    }
    nodes
}

/// What items ask at some positions.
fn questions(items: &[Item], of: &[usize], positions: Range<usize>) -> Vec<Question> {
    let mut all = Vec::new();
    for &item in of {
        let Item { ids, targets, .. } = &items[item];
        let before = ids.len() - targets.len();
        for position in positions.start.max(before)..positions.end.min(ids.len()) {
            let place = position - before;
            if let Some(token) = targets[place] {
                all.push(Question { position, token, item, place });
            }
        }
    }
    all.sort_by_key(|question| question.position);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn item(ids: &[u32], targets: usize) -> Item {
        let targets = (0..targets).map(|place| (place % 3 != 1).then_some(place as u32)).collect();
        Item { ids: ids.to_vec(), targets, length: ids.len(), start: 0 }
    }

    /// The tokens from the first one to the end of a node.
    fn path(items: &[Item], nodes: &[Node], mut node: usize) -> Vec<u32> {
        let mut ids = Vec::new();
        loop {
            let Node { parent, item, tokens, .. } = &nodes[node];
            ids.splice(0..0, items[*item].ids[tokens.clone()].iter().copied());
            match parent {
                Some(parent) => node = *parent,
                None => return ids,
            }
        }
    }

    /// Every question of every item is asked once, at a node whose path is the item's beginning.
    fn check(items: &[Item]) -> Vec<Node> {
        let nodes = tree(items, |_| 0, |item| item.length > 90);
        let mut seen = BTreeSet::new();
        for (number, node) in nodes.iter().enumerate() {
            assert!(!node.tokens.is_empty() && node.parent.is_none_or(|parent| parent < number));
            assert!(node.questions.is_sorted_by_key(|question| question.position));
            for child in &node.children {
                assert_eq!(nodes[*child].parent, Some(number));
                assert_eq!(nodes[*child].tokens.start, node.tokens.end);
            }
            for question in &node.questions {
                let Item { ids, targets, .. } = &items[question.item];
                assert!(node.tokens.contains(&question.position));
                let before = ids.len() - targets.len();
                assert_eq!(question.position, before + question.place);
                assert_eq!(targets[question.place], Some(question.token));
                let path = path(items, &nodes, number);
                assert_eq!(path[..=question.position], ids[..=question.position]);
                assert!(seen.insert((question.item, question.place)), "asked twice");
            }
        }
        let asked = items.iter().map(|item| item.targets.iter().flatten().count()).sum::<usize>();
        assert_eq!(seen.len(), asked);
        nodes
    }

    #[test]
    fn what_items_begin_with_is_one_node() {
        let prompt: Vec<u32> = (0..40).collect();
        let with = |more: &[u32]| item(&[&prompt, more].concat(), more.len() + 1);
        let nodes = check(&[with(&[]), with(&[7]), with(&[7, 8]), with(&[9]), with(&[7, 8])]);
        assert_eq!(nodes[0].tokens, 0..40);
        assert_eq!(nodes[0].questions.len(), 5, "all five ask behind the prompt");
        let read: usize = nodes.iter().map(|node| node.tokens.len()).sum();
        assert_eq!(read, 40 + 2 + 1, "7 8 is read for 7, too; 9 is read apart");
    }

    #[test]
    fn little_in_common_is_read_again() {
        let nodes = check(&[item(&[1, 2, 3], 2), item(&[1, 2, 4], 2), item(&[1, 2], 1), item(&[1], 0)]);
        assert!(nodes.iter().all(|node| node.parent.is_none()));
        assert_eq!(nodes.len(), 3, "nothing is read for the item that asks nothing");
    }

    #[test]
    fn every_beginning_of_a_text_is_one_run() {
        let text: Vec<u32> = (0..300).collect();
        // Long items would be a run apart.
        let items: Vec<_> = (1..300).map(|len| Item { length: 1, ..item(&text[..len], 1) }).collect();
        let nodes = check(&items);
        assert!(nodes.len() == 1 && nodes[0].tokens == (0..299), "{} runs", nodes.len());
    }

    #[test]
    fn items_of_other_starts_and_lengths_share_nothing() {
        let long: Vec<u32> = (0..80).collect();
        let mut items = vec![item(&long, 3), item(&long, 5), item(&long, 80), item(&long, 1)];
        items[1].start = 1;
        items[2].length = 91;
        let nodes = check(&items);
        assert_eq!(nodes.iter().map(|node| node.tokens.len()).collect::<Vec<_>>(), [80; 3]);
    }

    #[test]
    fn any_items_are_asked_all_that_they_ask() {
        let mut state = 5_u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..200 {
            let count = 1 + next(12);
            let items: Vec<Item> = (0..count)
                .map(|_| {
                    let mut ids: Vec<u32> = vec![9; next(3) as usize * 20];
                    ids.extend((0..1 + next(30)).map(|_| next(2)));
                    let targets = next(1 + ids.len() as u32) as usize;
                    item(&ids, targets)
                })
                .collect();
            check(&items);
        }
    }
}
