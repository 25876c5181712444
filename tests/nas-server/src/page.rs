//! Pages of what is listed.

use serde_json::Value;

use crate::error::ApiError;
use crate::parameters::Parameters;

const TOKEN: &str = "TGlzdFJlc291cmNlVG9rZW4";

/// The page asked for, and the token of the next one.
pub(crate) fn cut(
    all: Vec<Value>,
    parameters: &Parameters,
) -> Result<(Vec<Value>, Option<String>), ApiError> {
    let size: usize = match parameters.get("MaxResults") {
        None => 20,
        Some(text) => {
            let size = text.parse().ok().filter(|size| (10..=100).contains(size));
            size.ok_or_else(|| {
                let message = "The specified MaxResults is invalid.";
                ApiError::new(404, "InvalidParameter.InvalidMaxResults", message)
            })?
        }
    };
    let start: usize = match parameters.get("NextToken") {
        None => 0,
        Some(token) => token
            .strip_prefix(TOKEN)
            .and_then(|offset| offset.parse().ok())
            .filter(|start| *start > 0)
            .ok_or_else(|| {
                let message = "The specified NextToken is invaild.";
                ApiError::new(404, "InvalidParameter.InvalidNextToken", message)
            })?,
    };
    let end = start.saturating_add(size);
    let next = (end < all.len()).then(|| format!("{TOKEN}{end}"));
    Ok((all.into_iter().skip(start).take(size).collect(), next))
}
