//! What a call is asked with, checked as the API's description says.

use std::collections::BTreeMap;

use crate::error::ApiError;

/// A call's parameters.
#[derive(Debug, Clone)]
pub(crate) struct Parameters(pub(crate) BTreeMap<String, String>);

impl Parameters {
    /// What is there; an empty one is not.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn require(&self, name: &str) -> Result<&str, ApiError> {
        self.get(name).ok_or_else(|| ApiError::missing(name))
    }

    /// A name that the description does not have is a client's mistake. The API itself would not say
    /// so; a test is to.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        let filters = known.contains(&"Filters");
        let fits = |name: &str| {
            let is_filter = || {
                let mut parts = name.split('.');
                parts.next() == Some("Filters")
                    && parts.next().is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n > 0))
                    && matches!(parts.next(), Some("Key" | "Value"))
                    && parts.next().is_none()
            };
            name == "RegionId" || known.contains(&name) || filters && is_filter()
        };
        match self.0.keys().find(|name| !fits(name)) {
            Some(name) => Err(ApiError::invalid(&format!("parameter {name}"))),
            None => Ok(()),
        }
    }

    /// A path that begins and ends in `/`.
    pub(crate) fn path(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let Some(path) = self.get(name) else { return Ok(None) };
        let fits = path.starts_with('/')
            && path.ends_with('/')
            && path.chars().count() <= 1023
            && !path.contains("/../");
        if fits { Ok(Some(path)) } else { Err(ApiError::invalid(name)) }
    }

    pub(crate) fn one_of(&self, name: &str, values: &[&str]) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !values.contains(&value) => Err(ApiError::invalid(name)),
            _ => Ok(()),
        }
    }

    /// What makes a call the same as another; up to 64 ASCII characters.
    pub(crate) fn token(&self) -> Result<Option<&str>, ApiError> {
        let Some(token) = self.get("ClientToken") else { return Ok(None) };
        let fits = token.is_ascii() && token.len() <= 64;
        if fits { Ok(Some(token)) } else { Err(ApiError::invalid("ClientToken")) }
    }

    /// 2 to 128 letters, digits, `:`, `_` and `-`, a letter first.
    pub(crate) fn description(&self) -> Result<(), ApiError> {
        let Some(text) = self.get("Description") else { return Ok(()) };
        let length = text.chars().count();
        let fits = (2..=128).contains(&length)
            && text.starts_with(char::is_alphabetic)
            && text.chars().all(|c| c.is_alphanumeric() || matches!(c, ':' | '_' | '-'))
            && !text.starts_with("http://")
            && !text.starts_with("https://");
        if fits {
            return Ok(());
        }
        let message = "Description format is invalid.";
        Err(ApiError::new(404, "InvalidDescription.InvalidFormat", message))
    }

    /// `Filters.N.Key` with its `Filters.N.Value`.
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Vec<(&str, &str)>, ApiError> {
        let mut filters = Vec::new();
        for n in 1..=12 {
            let Some(key) = self.get(&format!("Filters.{n}.Key")) else { break };
            if !known.contains(&key) {
                let message = "The specified Filter.N.Key is invalid.";
                return Err(ApiError::new(404, "InvalidFilterParam", message));
            }
            let value = self.get(&format!("Filters.{n}.Value")).ok_or_else(|| {
                let message = "The specified Filter.N.Value is invalid.";
                ApiError::new(404, "InvalidFilterValue", message)
            })?;
            filters.push((key, value));
        }
        Ok(filters)
    }
}
