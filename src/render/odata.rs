//! Text as a literal of OData, the language of filters in Prism's API.

/// In OData a quote in a string is doubled; nothing else is special.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
