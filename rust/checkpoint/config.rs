//! The values of a config.json, checked one by one as a model asks for them.
//!
//! Types are those that transformers 5.24 declares, and it is as strict: no 12.0, "12" or true for an integer, no null
//! where no null is allowed. Python's JSON writer may emit NaN and Infinity, which no field that is read can mean: they
//! become an error when a model asks for the field, and none where nobody does. Knows no model: which fields exist, and their defaults, is for `models` to say.

use std::path::Path;

use serde_json::{Map, Value};

use super::source::Source;
use crate::error::{Error, Result};

/// Name of the file in a Hugging Face folder.
const FILE: &str = "config.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Largest size that is taken for one, so that products of two fit 64 bits.
const MAX_SIZE: u64 = i32::MAX as u64;
/// Longest piece of a value that an error repeats, in characters.
const MAX_SHOWN: usize = 80;

/// The fields of a config.json.
///
/// # Examples
/// ```
/// use fastdecode::checkpoint::config::ConfigFile;
/// let mut config = ConfigFile::from_json("config.json", r#"{"hidden_size": 48, "n_inner": null}"#)?;
/// config.apply_aliases(&[("hidden_size", "n_embd")]);
/// assert_eq!(config.usize_or("n_embd", 768)?, 48);
/// assert_eq!(config.usize_opt("n_inner")?, None);
/// assert_eq!(config.usize_or("n_layer", 12)?, 12);
/// # Ok::<(), fastdecode::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConfigFile {
    label: String,
    /// Before the names of fields in errors: the object that they are in, and a full stop.
    within: String,
    values: Map<String, Value>,
    /// Fields that were given under another name, with that name.
    aliased: Vec<(String, String)>,
}

impl ConfigFile {
    /// Reads the config.json of a folder.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Config` when it is no JSON object.
    pub fn open(folder: &Path) -> Result<Self> {
        let source = Source::open(&folder.join(FILE))?;
        let label = source.label().to_string();
        if source.len() > MAX_FILE {
            let got = format!("{} bytes", source.len());
            return Err(document_error(label, format!("at most {MAX_FILE} bytes"), got));
        }
        let mut bytes = vec![0; source.len() as usize];
        source.read_at(0, &mut bytes, None)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let got = format!("another byte at {}", error.utf8_error().valid_up_to());
            document_error(label.clone(), "text in UTF-8".into(), got)
        })?;
        Self::from_json(&label, &text)
    }

    /// Reads the text of a config.json; `label` stands for the file's name in errors.
    ///
    /// # Errors
    /// `Config` when it is no JSON object.
    pub fn from_json(label: &str, text: &str) -> Result<Self> {
        let values = match serde_json::from_str(text) {
            Ok(values) => values,
            // Rare, so that the text is gone through only where plain JSON is not enough.
            Err(error) => serde_json::from_str(&without_non_finite(text))
                .map_err(|_| document_error(label.into(), "a JSON object".into(), error.to_string()))?,
        };
        Ok(Self { label: label.into(), within: String::new(), values, aliased: Vec::new() })
    }

    /// Moves the value of each alias that is present over its field: pairs of (alias, field).
    ///
    /// transformers calls this `attribute_map`; where both names are present the alias wins, as there.
    pub fn apply_aliases(&mut self, aliases: &[(&str, &str)]) {
        for &(alias, field) in aliases {
            if let Some(value) = self.values.shift_remove(alias) {
                self.values.insert(field.into(), value);
                self.aliased.push((field.into(), alias.into()));
            }
        }
    }

    /// The fields of an object within this one; `None` where it is absent, null or empty.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.value(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(values)) if values.is_empty() => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self {
                label: self.label.clone(),
                within: format!("{}{field}.", self.within),
                values: values.clone(),
                aliased: Vec::new(),
            })),
            Some(_) => Err(self.invalid(field, "an object or null")),
        }
    }

    /// Puts a size in the place of the file's.
    pub fn set_size(&mut self, field: &str, size: usize) {
        self.values.insert(field.to_owned(), size.into());
    }

    /// Name of the file, as errors give it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The value of a field as it is; a null is a value.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.values.get(field)
    }

    /// Which architecture the folder is of.
    ///
    /// # Errors
    /// `Config` when the field is missing or no string.
    pub fn model_type(&self) -> Result<&str> {
        self.str_opt("model_type")?.ok_or_else(|| self.invalid("model_type", "the architecture's name"))
    }

    /// A size that has a default: an integer from 1 to 2^31 - 1.
    ///
    /// # Errors
    /// `Config` when the value is anything else, null included.
    pub fn usize_or(&self, field: &str, default: usize) -> Result<usize> {
        self.parse_or(field, SIZE, default, as_size)
    }

    /// A size that must be given: an integer from 1 to 2^31 - 1.
    ///
    /// # Errors
    /// `Config` when it is missing or anything else.
    pub fn usize(&self, field: &str) -> Result<usize> {
        self.value(field).and_then(as_size).ok_or_else(|| self.invalid(field, SIZE))
    }

    /// A size that may be absent or null: an integer from 1 to 2^31 - 1.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn usize_opt(&self, field: &str) -> Result<Option<usize>> {
        self.parse_opt(field, SIZE, as_size)
    }

    /// A count that has a default: an integer from 0 to 2^31 - 1.
    ///
    /// # Errors
    /// `Config` when the value is anything else, null included.
    pub fn count_or(&self, field: &str, default: usize) -> Result<usize> {
        let count = |value: &Value| value.as_u64().filter(|&n| n <= MAX_SIZE).map(|n| n as usize);
        self.parse_or(field, "an integer from 0 to 2147483647", default, count)
    }

    /// An integer of either sign that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn integer_opt(&self, field: &str) -> Result<Option<i64>> {
        self.parse_opt(field, "an integer or null", Value::as_i64)
    }

    /// A number that has a default; an integer passes for one.
    ///
    /// # Errors
    /// `Config` when the value is anything else, null included.
    pub fn f64_or(&self, field: &str, default: f64) -> Result<f64> {
        self.parse_or(field, "a finite number", default, Value::as_f64)
    }

    /// A number that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn f64_opt(&self, field: &str) -> Result<Option<f64>> {
        self.parse_opt(field, "a finite number or null", Value::as_f64)
    }

    /// A number that must be given.
    ///
    /// # Errors
    /// `Config` when it is missing or anything else.
    pub fn f64(&self, field: &str) -> Result<f64> {
        let expected = "a finite number";
        self.value(field).and_then(Value::as_f64).ok_or_else(|| self.invalid(field, expected))
    }

    /// A number of single precision that has a default, rounded from double precision as torch rounds it. The fields that are read so
    /// are declared as floats, for which transformers takes no integer.
    ///
    /// # Errors
    /// `Config` when the value is no number with a fraction or an exponent, or too large for single precision.
    pub fn f32_or(&self, field: &str, default: f32) -> Result<f32> {
        let narrow = |value: &Value| {
            value.as_f64().filter(|_| value.is_f64()).map(|x| x as f32).filter(|x| x.is_finite())
        };
        self.parse_or(field, "a float that fits single precision, as 1.0 or 1e-6", default, narrow)
    }

    /// A truth value that has a default.
    ///
    /// # Errors
    /// `Config` when the value is anything else, null included.
    pub fn bool_or(&self, field: &str, default: bool) -> Result<bool> {
        self.parse_or(field, "true or false", default, Value::as_bool)
    }

    /// A truth value that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn bool_opt(&self, field: &str) -> Result<Option<bool>> {
        self.parse_opt(field, "true, false or null", Value::as_bool)
    }

    /// A string that has a default.
    ///
    /// # Errors
    /// `Config` when the value is anything else, null included.
    pub fn str_or<'a>(&'a self, field: &str, default: &'a str) -> Result<&'a str> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.invalid(field, "a string")),
        }
    }

    /// A string that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn str_opt(&self, field: &str) -> Result<Option<&str>> {
        match self.value(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.invalid(field, "a string or null")),
        }
    }

    /// A list of strings that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn strings_opt(&self, field: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let strings = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        strings.map(Some).ok_or_else(|| self.invalid(field, "a list of strings, or null"))
    }

    /// A list of numbers that may be absent or null.
    ///
    /// # Errors
    /// `Config` when the value is anything else.
    pub fn numbers_opt(&self, field: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.map(Some).ok_or_else(|| self.invalid(field, "a list of numbers, or null"))
    }

    /// Whether the field is there; a null counts.
    pub fn has(&self, field: &str) -> bool {
        self.value(field).is_some()
    }

    /// Whether the field is there and null.
    pub fn is_null(&self, field: &str) -> bool {
        self.value(field).is_some_and(Value::is_null)
    }

    /// The first field that holds an object.
    pub fn first_object(&self) -> Option<&str> {
        self.values.iter().find(|(_, value)| value.is_object()).map(|(field, _)| field.as_str())
    }

    /// The first string of a list of strings; `None` where the field is anything else.
    pub fn first_of(&self, field: &str) -> Option<&str> {
        self.value(field)?.as_array()?.first()?.as_str()
    }

    /// Token ids: one integer or a list of them; `None` where the field is absent, an empty list for null.
    ///
    /// # Errors
    /// `Config` when the value is anything else, or an id is negative or past 2^31 - 1.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| value.as_u64().filter(|&id| id <= MAX_SIZE).map(|id| id as u32);
        let ids = |value: &Value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        let expected = "a token id (an integer of at least 0), a list of them, or null";
        self.value(field).map(|value| ids(value).ok_or_else(|| self.invalid(field, expected))).transpose()
    }

    /// An error about a field, with the value that the file gives it.
    pub fn invalid(&self, field: &str, expected: impl Into<String>) -> Error {
        let alias = self.aliased.iter().find(|(to, _)| to == field).map(|(_, alias)| alias);
        let got = self.value(field).map_or_else(|| "no such field".into(), shown);
        Error::Config {
            file: self.label.clone(),
            field: format!("{}{}", self.within, alias.map_or(field, String::as_str)),
            expected: expected.into(),
            got,
        }
    }

    fn parse_or<T>(&self, field: &str, expected: &str, default: T, parse: Parser<T>) -> Result<T> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => parse(value).ok_or_else(|| self.invalid(field, expected)),
        }
    }

    fn parse_opt<T>(&self, field: &str, expected: &str, parse: Parser<T>) -> Result<Option<T>> {
        match self.value(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => parse(value).map(Some).ok_or_else(|| self.invalid(field, expected)),
        }
    }
}

/// Reads one value, or refuses it.
type Parser<T> = fn(&Value) -> Option<T>;

const SIZE: &str = "an integer from 1 to 2147483647";

fn as_size(value: &Value) -> Option<usize> {
    value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size)).map(|size| size as usize)
}

fn document_error(file: String, expected: String, got: String) -> Error {
    Error::Config { file, field: "the document".into(), expected, got }
}

/// A value as JSON, cut to a length that fits a message.
fn shown(value: &Value) -> String {
    let text = match value.as_array().map(Vec::as_slice) {
        // As `without_non_finite` writes it.
        Some([Value::String(name)]) if name.parse::<f64>().is_ok_and(|x| !x.is_finite()) => name.clone(),
        _ => value.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The text with each NaN, Infinity or number too large for double precision as a list of one string that names it: no
/// field takes such a list, so that whoever asks for it gets an error, and no list is a key.
fn without_non_finite(text: &str) -> String {
    let mut copy = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| matches!(c, '"' | 'N' | 'I' | '-' | '0'..='9')) {
        copy.push_str(&rest[..start]);
        rest = &rest[start..];
        let (length, finite) = if let Some(inner) = rest.strip_prefix('"') {
            (string_end(inner).map_or(rest.len(), |end| end + 2), true)
        } else if let Some(name) =
            ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| rest.starts_with(name))
        {
            (name.len(), false)
        } else {
            let of_number = |c: char| matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
            let length = rest.find(|c| !of_number(c)).unwrap_or(rest.len()).max(1);
            (length, !rest[..length].parse::<f64>().is_ok_and(f64::is_infinite))
        };
        let (token, after) = rest.split_at(length);
        if finite {
            copy.push_str(token);
        } else {
            copy.extend(["[\"", token, "\"]"]);
        }
        rest = after;
    }
    copy + rest
}

/// Position of the quote that ends a JSON string, given what follows its opening quote.
fn string_end(inner: &str) -> Option<usize> {
    let mut escaped = false;
    inner.bytes().position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    })
}
