//! What ends a step early: a flag that anybody may set, and a hook that the step's own thread asks now and then.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How old a [`Cancel`] is before its hook is asked, and the shortest time between two questions. A question may cost the wait for a
/// lock of the asker's, and a person who ends a call does not notice a twentieth of a second.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// Says whether the step is to end.
type Hook<'a> = &'a (dyn Fn() -> bool + Sync);

/// What ends a step early: a flag that anybody may set and, for the thread that began the step, a hook that it asks now and then.
pub struct Cancel<'a> {
    /// The flag, where it is not this value's own.
    flag: Option<&'a AtomicBool>,
    own: AtomicBool,
    asking: Option<Asking<'a>>,
}

/// A hook, and when it is to be asked.
struct Asking<'a> {
    hook: Hook<'a>,
    made: Instant,
    /// Nanoseconds after `made` before which it is not asked.
    next: AtomicU64,
}

impl fmt::Debug for Cancel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, asking) = (self.is_set(), self.asking.is_some());
        f.debug_struct("Cancel").field("set", &set).field("asking", &asking).finish()
    }
}

impl Cancel<'static> {
    /// One that nobody sets, unless by this very value.
    pub fn never() -> Self {
        Self { flag: None, own: AtomicBool::new(false), asking: None }
    }
}

impl<'a> Cancel<'a> {
    /// One that is set when `flag` is.
    pub fn new(flag: &'a AtomicBool) -> Self {
        Self { flag: Some(flag), own: AtomicBool::new(false), asking: None }
    }

    /// The same with a hook, whose `true` sets the flag. Made at the beginning of a call: it is asked once the call has taken
    /// a twentieth of a second and as often from then on, however short the steps are that make up the call. It is asked by
    /// [`Cancel::ask`] alone; a region of the team does so in its first member, which is the calling thread.
    #[must_use]
    pub fn asking(self, hook: Hook<'a>) -> Self {
        let asking = Asking { hook, made: Instant::now(), next: AtomicU64::new(nanoseconds(PAUSE)) };
        Self { asking: Some(asking), ..self }
    }

    /// Whether the step is to end.
    pub fn is_set(&self) -> bool {
        self.flag.unwrap_or(&self.own).load(Ordering::Relaxed)
    }

    /// Ends the step.
    pub fn set(&self) {
        self.flag.unwrap_or(&self.own).store(true, Ordering::Relaxed);
    }

    /// Whether the step is to end; asks the hook, where it is time to. For the thread that began the step and no other one, since a
    /// question of another thread takes the place of its own. The price is a reading of the clock where there is a hook.
    pub fn ask(&self) -> bool {
        if self.is_set() {
            return true;
        }
        self.asking.as_ref().is_some_and(|asking| {
            let ends = asking.is_due() && asking.ask();
            if ends {
                self.set();
            }
            ends
        })
    }

    /// Whether there is a hook.
    pub(super) fn has_hook(&self) -> bool {
        self.asking.is_some()
    }
}

impl Asking<'_> {
    fn is_due(&self) -> bool {
        nanoseconds(self.made.elapsed()) >= self.next.load(Ordering::Relaxed)
    }

    #[cold]
    fn ask(&self) -> bool {
        let ends = (self.hook)();
        // Counted from the answer: a hook that takes long leaves time for the step, too.
        self.next.store(nanoseconds(self.made.elapsed() + PAUSE), Ordering::Relaxed);
        ends
    }
}

/// A duration that ends before the year 2554.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_flag_is_seen_and_set_and_nobody_elses() {
        let flag = AtomicBool::new(false);
        let cancel = Cancel::new(&flag);
        assert!(!cancel.is_set() && !cancel.ask(), "not set yet");
        cancel.set();
        assert!(flag.load(Ordering::Relaxed) && cancel.is_set() && cancel.ask(), "set by the value");
        flag.store(false, Ordering::Relaxed);
        assert!(!cancel.is_set(), "the flag is what counts");
        let (one, other) = (Cancel::never(), Cancel::never());
        one.set();
        assert!(one.is_set() && !other.is_set(), "each has a flag of its own");
    }

    #[test]
    fn a_hook_is_asked_when_it_is_time_and_not_before() {
        let (flag, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let hook = || asked.fetch_add(1, Ordering::Relaxed) == 1;
        let cancel = Cancel::new(&flag).asking(&hook);
        let made = Instant::now();
        let mut times = Vec::new();
        while times.len() < 2 {
            assert!(!cancel.is_set(), "only the hook's second answer sets it");
            let before = asked.load(Ordering::Relaxed);
            assert_eq!(cancel.ask(), cancel.is_set(), "told as it is");
            if asked.load(Ordering::Relaxed) > before {
                times.push(made.elapsed());
            }
        }
        assert!(times[0] + Duration::from_millis(1) >= PAUSE, "young at {:?}", times[0]);
        assert!(times[1] >= times[0] + PAUSE - Duration::from_millis(1), "asked again at {times:?}");
        assert!(flag.load(Ordering::Relaxed) && cancel.ask(), "set");
        assert_eq!(asked.load(Ordering::Relaxed), 2, "nobody asks what is decided");
    }
}
