//! A call as its reader holds it: it joins the schedule when it is first asked for tokens, and gives them out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::call::{Call, ROOM};
use super::lead::Engine;
use super::options::Options;
use super::prefix::Prefix;
use super::progress::Progress;
use super::prompts::{Cursor, Entry, Prompts};
use super::request::Request;
use super::schedule::Ticket;
use super::{Event, Hook};
use crate::error::{Error, Result};
use crate::forks;
use crate::models::Decoder;

/// A running call.
///
/// ```
/// # use std::sync::Arc;
/// # use fastdecode::{engine::{Engine, Generation, Limit, Options, Prompts}, models::Decoder, Result};
/// fn run<M: Decoder>(model: Arc<M>) -> Result<Vec<u32>> where M::Sequence: 'static {
///     let options = Options { limit: Limit::NewTokens(8), ..Options::default() };
///     let engine = Arc::new(Engine::new(model));
///     let mut generation = Generation::new(&engine, Prompts::of(&[vec![1, 2, 3]]), options)?;
///     let mut ids = Vec::new();
///     while let Some(events) = generation.advance(None)? {
///         ids.extend(events.iter().map(|event| event.token_id));
///     }
///     Ok(ids)
/// }
/// ```
#[derive(Debug)]
pub struct Generation<M: Decoder>
where
    M::Sequence: 'static,
{
    engine: Arc<Engine<M>>,
    request: Arc<Request<M::Sequence>>,
    ticket: Arc<Ticket>,
    /// What was given out: a process that is forked in the middle begins again behind it.
    read: Progress,
    /// The prompt that was last asked for, and the place behind it.
    asked: (Cursor, Option<Entry>),
    events: Vec<Event>,
    is_over: bool,
}

/// Ends a call from any thread.
#[derive(Debug)]
pub struct Canceller<M: Decoder>
where
    M::Sequence: 'static,
{
    engine: Arc<Engine<M>>,
    ticket: Arc<Ticket>,
}

impl<M: Decoder> Canceller<M>
where
    M::Sequence: 'static,
{
    /// Ends the call: whoever waits for its tokens is told so at once. Waits for the schedule, for microseconds.
    pub fn cancel(&self) {
        self.ticket.cancelled.store(true, Ordering::SeqCst);
        self.engine.sweep();
    }
}

impl<M: Decoder> Generation<M>
where
    M::Sequence: 'static,
{
    /// Prepares a call; nothing is computed yet. No prompts give no rows.
    ///
    /// # Errors
    /// `Option` for an option or a prompt that cannot be used, or that an empty cache could not hold; `ContextLength` for a length
    /// that the model cannot hold.
    pub fn new(engine: &Arc<Engine<M>>, prompts: Prompts<M::Sequence>, options: Options) -> Result<Self> {
        let request = Arc::new(Request::new(&**engine.model(), prompts, options)?);
        let room = request.options.limit.tokens().min(ROOM);
        Ok(Self {
            engine: Arc::clone(engine),
            request,
            ticket: Arc::default(),
            read: Progress::new(room),
            asked: (Cursor::default(), None),
            events: Vec::new(),
            is_over: false,
        })
    }

    /// What ends the call from another thread.
    pub fn canceller(&self) -> Canceller<M> {
        Canceller { engine: Arc::clone(&self.engine), ticket: Arc::clone(&self.ticket) }
    }

    /// Number of rows of the output.
    pub fn row_count(&self) -> usize {
        self.request.row_count()
    }

    /// Tokens of a row's prompt, and those of its source. Quick where rows are asked for in order.
    pub fn prompt_tokens(&mut self, row: usize) -> usize {
        let Some(entry) = self.entry(row) else { return 0 };
        entry.ids.len() + self.request.prompts.source_length(&entry.source)
    }

    /// The last ids of a row's prompt, `most` of them or all that there are. Quick where rows are asked for in order.
    pub fn prompt_end(&mut self, row: usize, most: usize) -> &[u32] {
        let Some(entry) = self.entry(row) else { return &[] };
        let ids = self.request.prompts.ids(&entry.ids);
        &ids[ids.len().saturating_sub(most)..]
    }

    /// Where the prompt of a row is; none where there is no such row.
    fn entry(&mut self, row: usize) -> Option<Entry> {
        let place = row / self.request.rows_per_prompt();
        let (cursor, asked) = &mut self.asked;
        if asked.as_ref().is_none_or(|entry| entry.place != place) {
            if cursor.place() > place {
                *cursor = Cursor::default();
            }
            *asked = None;
            while let Some(entry) = cursor.next(&self.request.prompts) {
                if entry.place == place {
                    *asked = Some(entry);
                    break;
                }
            }
        }
        asked.clone()
    }

    /// The next tokens, in the order in which they were chosen. Where there are none yet, waits for a step, or leads one for all
    /// calls of the model where nobody does; it may bring none. `None` when everything is done.
    ///
    /// # Errors
    /// `Cancelled` after a cancel, or where the hook says so, after which the call may be repeated. Everything else ends the call:
    /// `Scores` where a row leaves no token to choose, `OutOfMemory`, `Panicked`.
    pub fn advance(&mut self, hook: Option<&Hook<'_>>) -> Result<Option<&[Event]>> {
        self.get(|engine, ticket, events| engine.wait(ticket, events, hook))
    }

    /// As [`Generation::advance`], without waiting or leading.
    ///
    /// # Errors
    /// As for [`Generation::advance`].
    pub fn take(&mut self) -> Result<Option<&[Event]>> {
        self.get(Engine::take)
    }

    fn get(
        &mut self,
        get: impl FnOnce(&Engine<M>, &Ticket, &mut Vec<Event>) -> Result<bool>,
    ) -> Result<Option<&[Event]>> {
        self.events.clear();
        if self.ticket.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.is_over {
            return Ok(None);
        }
        if self.ticket.process.load(Ordering::SeqCst) != forks::generation()
            || self.ticket.id.load(Ordering::SeqCst) == 0
        {
            self.engine.join(&self.ticket, Call::new(Arc::clone(&self.request), self.read.clone()));
        }
        match get(&self.engine, &self.ticket, &mut self.events) {
            Ok(true) => {}
            Ok(false) => {
                self.is_over = true;
                return Ok(None);
            }
            Err(error) => {
                self.is_over = !matches!(error, Error::Cancelled);
                return Err(error);
            }
        }
        for event in &self.events {
            self.read.read(event.row, event.token_id, event.finish_reason.is_some());
        }
        Ok(Some(&self.events))
    }

    /// Ends a row early (its text has met a stop string) and frees its cache; tokens that it is ahead of its reader are dropped. No
    /// effect on a row that is done, or of which no token was given out.
    ///
    /// # Errors
    /// `Option` where there is no such row, or where rows are the outcome of a search.
    pub fn finish(&mut self, row: usize) -> Result<()> {
        let option = |option: &str, expected: String, got: String| {
            Err(Error::Option { option: option.to_owned(), expected, got })
        };
        let rows = self.row_count();
        if row >= rows {
            return option("row", format!("a row below {rows}"), row.to_string());
        }
        if self.request.searches() {
            let expected = "1 for a row that is ended from outside (stop strings)".to_owned();
            return option("num_beams", expected, "beams".to_owned());
        }
        if self.read.tokens(row).is_empty() {
            return Ok(());
        }
        self.read.finish(row);
        if self.ticket.process.load(Ordering::SeqCst) == forks::generation() {
            self.engine.finish(&self.ticket, row);
        }
        Ok(())
    }
}

impl<M: Decoder> Generation<M>
where
    M::Sequence: 'static,
{
    /// Ends the call, and gives what its only row has in the cache where [`Options::keep`] was set: the ids of its prompt and the
    /// generated ones, as far as they were read. Waits for the step that has it. None where it holds nothing, ended with an error,
    /// or has given it before; and in a forked child, where the call has not gone on.
    ///
    /// # Errors
    /// `Cancelled` where the hook says so, after which it may be asked again.
    pub fn kept(&mut self, hook: Option<&Hook<'_>>) -> Result<Option<Prefix<M::Sequence>>> {
        if !self.request.options.keep
            || self.ticket.process.load(Ordering::SeqCst) != forks::generation()
            || self.ticket.id.load(Ordering::SeqCst) == 0
        {
            return Ok(None);
        }
        let kept = self.engine.close(&self.ticket, hook)?;
        self.is_over = true;
        Ok(kept)
    }
}

impl<M: Decoder> Drop for Generation<M>
where
    M::Sequence: 'static,
{
    fn drop(&mut self) {
        self.ticket.cancelled.store(true, Ordering::SeqCst);
        self.engine.depart();
    }
}
