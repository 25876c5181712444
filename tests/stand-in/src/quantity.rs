//! Kubernetes' quantities as bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const UNITS: [(&str, u64); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// The bytes that a storage request means, rounded up; `None` for what is none.
pub(crate) fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)))
        .unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let (whole, fraction) = number.split_once('.')?;
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let bytes = (whole * scale + fraction).checked_mul(u128::from(unit))?.div_ceil(scale);
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_the_api_writes_them() {
        let cases = [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("16Mi", Some(16 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("5G", Some(5_000_000_000)),
            ("0.1k", Some(100)),
            ("20Gi", Some(20 << 30)),
            ("", None),
            ("Mi", None),
            ("-1", None),
            ("99999999E", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(&Quantity(text.to_owned())), expected, "{text}");
        }
    }
}
