//! The rotary positions that a config asks for, to the chain of float32 operations by which transformers gets its frequencies
//! (5.24, `modeling_rope_utils.py`).
//!
//! Every power, quotient and product below is rounded where transformers rounds it. Its `pow` of single precision differs between
//! CPUs by two units in the last place at most; ours is the exact power, rounded.

use super::decoder::ContextLength;
use crate::checkpoint::config::ConfigFile;
use crate::error::Result;
use crate::layers::rotary::{Beyond, Rotary};

/// What a family says about its rotary positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// Width of a head.
    pub(super) head_dim: usize,
    /// `max_position_embeddings` of the config.
    pub(super) positions: usize,
    /// Part of a head that is turned where the config names none; `None` where the family turns all of it and reads no such field.
    pub(super) partial: Option<f64>,
}

/// Rotary positions, and how long a sequence may be for which they hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    /// Frequencies and factor.
    pub(super) rotary: Rotary,
    /// The kind, one of [`KINDS`].
    pub(super) kind: &'static str,
    /// `max_position_embeddings` of the config.
    pub(super) positions: usize,
}

impl Rope {
    /// Positions of the longest sequence that is not long, where frequencies depend on that.
    pub(super) fn border(&self) -> Option<usize> {
        self.rotary.beyond.as_ref().map(|beyond| beyond.border)
    }

    /// How long a sequence may become.
    pub(super) fn context(&self) -> ContextLength {
        match self.kind {
            "dynamic" => {
                ContextLength { limit: Some(self.positions), usual: Some(self.positions), reason: DYNAMIC }
            }
            _ => ContextLength { usual: Some(self.positions), ..ContextLength::default() },
        }
    }
}

/// The fields that say what to compute: those of an object in the config, and some of the config itself.
struct Fields<'a> {
    file: &'a ConfigFile,
    object: ConfigFile,
}

impl<'a> Fields<'a> {
    /// The object that counts: `rope_scaling` where it is there and not empty, `rope_parameters` otherwise.
    fn of(file: &'a ConfigFile) -> Result<Self> {
        let (old, new) = (file.object("rope_scaling")?, file.object("rope_parameters")?);
        let object = match old.or(new) {
            Some(object) => object,
            None => ConfigFile::from_json(file.label(), "{}")?,
        };
        if let Some(kind_of_layer) = object.first_object() {
            let expected = "the parameters themselves (this architecture has one rope for all layers)";
            return Err(object.invalid(kind_of_layer, expected));
        }
        Ok(Self { file, object })
    }

    /// A number above zero that must be given.
    fn positive(&self, field: &str) -> Result<f64> {
        positive(&self.object, field)
    }

    /// A number of the object, or of the config itself.
    fn inherited(&self, field: &str) -> Result<Option<f64>> {
        let from = if self.object.has(field) { &self.object } else { self.file };
        if from.has(field) { from.f64(field).map(Some) } else { Ok(None) }
    }

    /// The length before scaling: of the config itself, else of the object, else the longest of all.
    fn original(&self, positions: usize) -> Result<f64> {
        let field = "original_max_position_embeddings";
        match [self.file, &self.object].into_iter().find(|from| from.has(field)) {
            Some(from) => positive(from, field),
            None => Ok(positions as f64),
        }
    }

    /// The part of a head that is turned, with whoever names it. A null of the config itself names nothing.
    fn part(&self) -> Option<&ConfigFile> {
        let field = "partial_rotary_factor";
        if self.object.has(field) {
            return Some(&self.object);
        }
        Some(self.file).filter(|file| file.has(field) && !file.is_null(field))
    }

    /// The kind of scaling: `rope_type`, else `type` of old files.
    fn kind(&self) -> Result<&'static str> {
        let kind = self.object.str_or(self.kind_field(), "default")?;
        let known = KINDS.into_iter().find(|&known| known == kind);
        known.ok_or_else(|| self.object.invalid(self.kind_field(), format!("one of {}", KINDS.join(", "))))
    }

    fn kind_field(&self) -> &'static str {
        if self.object.has("rope_type") { "rope_type" } else { "type" }
    }
}

/// A number above zero that must be given.
fn positive(from: &ConfigFile, field: &str) -> Result<f64> {
    let x = from.f64(field)?;
    if x > 0.0 { Ok(x) } else { Err(from.invalid(field, "a number above 0")) }
}

/// The kinds that are supported.
const KINDS: [&str; 6] = ["default", "linear", "dynamic", "llama3", "longrope", "yarn"];

/// Values of a head that may turn, at most: frequencies are computed before a config is held against tensors.
const WIDEST: usize = 1 << 16;

/// Radians by which a pair may turn from one position to the next; sines and cosines are exact for what a long sequence makes of
/// them. Models have 1 at most.
const FASTEST: f32 = 1000.0;

/// Why a sequence ends where it does with the kind "dynamic".
const DYNAMIC: &str = "rope type \"dynamic\" is supported up to max_position_embeddings, since beyond it transformers changes the \
    frequencies of all positions with the longest sequence that the model has seen; shorten the prompt or ask for fewer new tokens";

/// Reads what a config says about rotary positions.
///
/// # Errors
/// `Config` for a kind that is unknown or not supported, and for values that are missing or out of range.
pub(super) fn read(file: &ConfigFile, defaults: Defaults) -> Result<Rope> {
    let fields = Fields::of(file)?;
    let kind = fields.kind()?;
    let theta = fields.inherited("rope_theta")?.unwrap_or(10_000.0);
    if theta <= 0.0 {
        let from = if fields.object.has("rope_theta") { &fields.object } else { file };
        return Err(from.invalid("rope_theta", "a number above 0"));
    }
    let field = "partial_rotary_factor";
    let named = fields.part();
    let part = match (defaults.partial, named) {
        (Some(_), Some(from)) => from.f64(field)?,
        (Some(_), None) if file.is_null(field) => return Err(file.invalid(field, "a number")),
        (Some(default), None) => default,
        // Whole heads turn; the kind "default" does not look at the field.
        (None, Some(from)) if kind != "default" && from.f64(field)? != 1.0 => {
            return Err(from.invalid(field, "1 (this architecture turns whole heads)"));
        }
        (None, _) => 1.0,
    };
    let dim = (defaults.head_dim as f64 * part) as usize;
    if !(0.0..=1.0).contains(&part) || dim == 0 || !dim.is_multiple_of(2) {
        let expected = "a part of a head with an even number of values, at least 2";
        return Err(match defaults.partial {
            Some(_) => named.unwrap_or(file).invalid(field, expected),
            None => file.invalid("head_dim", "an even number of at least 2"),
        });
    }
    if dim > WIDEST {
        return Err(file.invalid("head_dim", format!("at most {WIDEST} values that turn")));
    }
    let powers = powers(theta, dim);
    let inverse = || powers.iter().map(|power| 1.0 / power);
    let plain = |inverse: Vec<f32>| Rotary { inverse, beyond: None, factor: 1.0 };
    let rotary = match kind {
        "default" => plain(inverse().collect()),
        "linear" => {
            let factor = fields.positive("factor")? as f32;
            plain(inverse().map(|x| x / factor).collect())
        }
        // Beyond that length transformers' frequencies depend on what the module has seen before.
        "dynamic" => {
            fields.positive("factor")?;
            if dim == 2 {
                let expected = "another kind where two values of a head turn (transformers divides by zero)";
                return Err(fields.object.invalid(fields.kind_field(), expected));
            }
            plain(inverse().collect())
        }
        "llama3" => {
            let old = fields.original(defaults.positions)?;
            plain(llama3(inverse(), old, &fields)?)
        }
        "longrope" => longrope(&powers, &fields, defaults.positions)?,
        _ => yarn(&powers, theta, &fields, defaults.positions)?,
    };
    let beyond = rotary.beyond.iter().flat_map(|beyond| &beyond.inverse);
    let is_slow = rotary.inverse.iter().chain(beyond).all(|x| x.abs() <= FASTEST);
    if !is_slow || !rotary.factor.is_finite() {
        let expected = format!("values that give a finite factor, and at most {FASTEST} radians a position");
        return Err(match kind {
            "default" if !fields.object.has("rope_theta") => file.invalid("rope_theta", expected),
            "default" => fields.object.invalid("rope_theta", expected),
            _ => fields.object.invalid(fields.kind_field(), expected),
        });
    }
    Ok(Rope { rotary, kind, positions: defaults.positions })
}

/// `theta` to the power of every exponent, from 0 on in steps of two parts of the width.
fn powers(theta: f64, dim: usize) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / dim as f32;
    // torch takes a base of single precision.
    (0..dim / 2).map(|i| f64::from(theta as f32).powf(f64::from(exponent(i))) as f32).collect()
}

/// Long waves are stretched, short ones are kept, and those between are mixed (Llama 3.1).
fn llama3(inverse: impl Iterator<Item = f32>, old: f64, fields: &Fields<'_>) -> Result<Vec<f32>> {
    let (factor, low, high) = (
        fields.positive("factor")? as f32,
        fields.positive("low_freq_factor")?,
        fields.positive("high_freq_factor")?,
    );
    if high <= low {
        return Err(fields.object.invalid("high_freq_factor", "more than low_freq_factor"));
    }
    let (longest, shortest) = ((old / low) as f32, (old / high) as f32);
    let of = |x: f32| {
        let wave = (2.0 * std::f64::consts::PI) as f32 / x;
        if wave > longest {
            return x / factor;
        }
        if wave < shortest {
            return x;
        }
        let smooth = (old as f32 / wave - low as f32) / (high - low) as f32;
        (1.0 - smooth) * x / factor + smooth * x
    };
    Ok(inverse.map(of).collect())
}

/// Every wave has a factor of its own, one in short sequences and another in long ones (Ding et al. 2024).
fn longrope(powers: &[f32], fields: &Fields<'_>, positions: usize) -> Result<Rotary> {
    let original = fields.original(positions)?;
    let factor = match fields.object.f64_opt("factor")? {
        Some(_) => fields.positive("factor")?,
        None => positions as f64 / original,
    };
    let attention = match fields.object.f64_opt("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    let inverse = |field: &str| -> Result<Vec<f32>> {
        let expected = format!("a list of {} numbers other than 0", powers.len());
        let factors = fields.object.numbers_opt(field)?.filter(|all| all.len() == powers.len());
        let factors = factors.filter(|all| all.iter().all(|&x| x as f32 != 0.0));
        let factors = factors.ok_or_else(|| fields.object.invalid(field, expected))?;
        Ok(factors.iter().zip(powers).map(|(&factor, power)| 1.0 / (factor as f32 * power)).collect())
    };
    let beyond = Beyond { border: original as usize, inverse: inverse("long_factor")? };
    let (inverse, factor) = (inverse("short_factor")?, attention as f32);
    Ok(Rotary { inverse, beyond: Some(beyond), factor })
}

/// Long waves are stretched, short ones are kept, with a ramp between, and scores are sharpened (Peng et al. 2023).
fn yarn(powers: &[f32], theta: f64, fields: &Fields<'_>, positions: usize) -> Result<Rotary> {
    let original = fields.original(positions)?;
    let factor = match fields.object.is_null("factor") {
        true => positions as f64 / original,
        false => fields.positive("factor")?,
    };
    let scaled = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
    let set = |x: Option<f64>| x.filter(|&x| x != 0.0);
    let attention = match fields.object.f64_opt("attention_factor")? {
        Some(given) => given,
        None => {
            match (set(fields.object.f64_opt("mscale")?), set(fields.object.f64_opt("mscale_all_dim")?)) {
                (Some(of), Some(by)) => scaled(of) / scaled(by),
                _ => scaled(1.0),
            }
        }
    };
    let fast = set(fields.object.f64_opt("beta_fast")?).unwrap_or(32.0);
    let slow = set(fields.object.f64_opt("beta_slow")?).unwrap_or(1.0);
    if fast < 0.0 || slow < 0.0 {
        let field = if fast < 0.0 { "beta_fast" } else { "beta_slow" };
        return Err(fields.object.invalid(field, "a number above 0"));
    }
    if theta == 1.0 {
        let from = if fields.object.has("rope_theta") { &fields.object } else { fields.file };
        return Err(
            from.invalid("rope_theta", "a number other than 1 with yarn, which divides by its logarithm")
        );
    }
    let truncate = !fields.object.is_null("truncate") && fields.object.bool_or("truncate", true)?;
    let dim = 2 * powers.len();
    let turns =
        |count: f64| dim as f64 * (original / (count * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
    let (low, high) = (turns(fast), turns(slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
    let high = if low == high { high + 0.001 } else { high };
    let of = |(i, &power): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        (1.0 / (factor as f32 * power)) * (1.0 - kept) + (1.0 / power) * kept
    };
    let inverse = powers.iter().enumerate().map(of).collect();
    Ok(Rotary { inverse, beyond: None, factor: attention as f32 })
}
