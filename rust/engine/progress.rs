//! What a reader has got of its call, as far as rows are not done: enough to begin the call again behind it, in a process that was
//! forked in the middle.

use std::collections::VecDeque;

/// What was read of one row.
#[derive(Debug, Clone)]
enum Read {
    Tokens(Vec<u32>),
    All,
}

/// What was read of the rows of a call.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Rows before this one are done.
    first: usize,
    rows: VecDeque<Read>,
    /// Tokens that a row makes room for at once.
    room: usize,
}

impl Progress {
    /// Nothing was read; rows are expected to have so many tokens.
    pub(super) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    /// Whether all of a row was read.
    pub(super) fn is_done(&self, row: usize) -> bool {
        row < self.first || matches!(self.rows.get(row - self.first), Some(Read::All))
    }

    /// Tokens that were read of a row that is not done.
    pub(super) fn tokens(&self, row: usize) -> &[u32] {
        match row.checked_sub(self.first).and_then(|place| self.rows.get(place)) {
            Some(Read::Tokens(tokens)) => tokens,
            Some(Read::All) | None => &[],
        }
    }

    /// Notes a token, and whether it is the row's last.
    pub(super) fn read(&mut self, row: usize, token: u32, is_last: bool) {
        if is_last {
            self.finish(row);
            return;
        }
        let room = self.room;
        if let Some(Read::Tokens(tokens)) = self.row(row) {
            if tokens.is_empty() {
                tokens.reserve_exact(room);
            }
            tokens.push(token);
        }
    }

    /// Notes that no more of a row is wanted.
    pub(super) fn finish(&mut self, row: usize) {
        if let Some(read) = self.row(row) {
            *read = Read::All;
        }
        while matches!(self.rows.front(), Some(Read::All)) {
            self.rows.pop_front();
            self.first += 1;
        }
    }

    fn row(&mut self, row: usize) -> Option<&mut Read> {
        let place = row.checked_sub(self.first)?;
        while self.rows.len() <= place {
            self.rows.push_back(Read::Tokens(Vec::new()));
        }
        self.rows.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_done_take_no_room() {
        let mut progress = Progress::default();
        for row in 0..1000 {
            progress.read(row, 7, false);
            progress.read(row, 8, row != 3);
            assert_eq!(progress.is_done(row), row != 3);
        }
        assert_eq!(progress.tokens(3), [7, 8]);
        assert_eq!((progress.first, progress.rows.len()), (3, 997));
        progress.finish(3);
        assert_eq!((progress.first, progress.rows.len()), (1000, 0));
        assert!(progress.is_done(999) && !progress.is_done(1000));
        assert!(progress.tokens(1000).is_empty());
    }

    #[test]
    fn rows_are_read_in_any_order_and_an_end_is_an_end() {
        let mut progress = Progress::new(4);
        progress.read(2, 5, false);
        progress.read(0, 6, false);
        progress.read(2, 7, false);
        assert_eq!(
            (progress.tokens(0), progress.tokens(1), progress.tokens(2)),
            (&[6][..], &[][..], &[5, 7][..])
        );
        assert!((0..4).all(|row| !progress.is_done(row)));
        progress.finish(1);
        progress.read(2, 8, true);
        assert_eq!((progress.is_done(0), progress.is_done(1), progress.is_done(2)), (false, true, true));
        assert!(progress.tokens(2).is_empty() && progress.first == 0);
        // What comes of a row behind its end changes nothing.
        progress.read(1, 9, false);
        progress.finish(0);
        progress.read(0, 9, false);
        progress.finish(0);
        assert_eq!((progress.first, progress.rows.len()), (3, 0));
        let copy = progress.clone();
        progress.read(3, 1, false);
        assert!(copy.tokens(3).is_empty() && progress.tokens(3) == [1]);
    }

    #[test]
    fn a_row_makes_room_once() {
        let mut progress = Progress::new(100);
        progress.read(0, 0, false);
        let begin = progress.tokens(0).as_ptr();
        (1..100).for_each(|token| progress.read(0, token, false));
        assert_eq!((progress.tokens(0).as_ptr(), progress.tokens(0).len()), (begin, 100));
    }
}
