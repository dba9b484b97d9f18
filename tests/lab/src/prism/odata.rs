//! The part of OData that `$filter` needs here: comparisons of fields with literals, `startswith`, `any` over a list of objects,
//! joined by `and` and `or`. Whatever else is asked is refused, never ignored.

use serde_json::Value;

/// A `$filter` that has been understood.
#[derive(Debug, PartialEq)]
pub enum Filter {
    Equal {
        path: Vec<String>,
        text: String,
    },
    NotEqual {
        path: Vec<String>,
        text: String,
    },
    StartsWith {
        path: Vec<String>,
        text: String,
    },
    /// Some member of the list at `path` matches.
    Any {
        path: Vec<String>,
        inner: Box<Filter>,
    },
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
    Colon,
}

impl Filter {
    /// Parses a decoded `$filter`; the error says what was not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0, variable: None };
        let filter = parser.or()?;
        match parser.peek() {
            None => Ok(filter),
            Some(rest) => Err(format!("$filter: unexpected {rest:?} in {text:?}")),
        }
    }

    /// Whether a v4 object matches.
    pub fn matches(&self, entity: &Value) -> bool {
        match self {
            Self::Equal { path, text } => text_at(entity, path).as_deref() == Some(text),
            Self::NotEqual { path, text } => text_at(entity, path).as_deref() != Some(text),
            Self::StartsWith { path, text } => text_at(entity, path).is_some_and(|found| found.starts_with(text)),
            Self::Any { path, inner } => {
                let list = value_at(entity, path).and_then(Value::as_array);
                list.is_some_and(|members| members.iter().any(|member| inner.matches(member)))
            }
            Self::And(left, right) => left.matches(entity) && right.matches(entity),
            Self::Or(left, right) => left.matches(entity) || right.matches(entity),
        }
    }
}

fn value_at<'a>(entity: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(entity, |value, key| value.get(key))
}

fn text_at(entity: &Value, path: &[String]) -> Option<String> {
    match value_at(entity, path)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// An enumeration literal, `Prism.Config.TaskStatus'QUEUED'`, is reduced to its text.
fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            ' ' => {}
            '(' => found.push(Token::Open),
            ')' => found.push(Token::Close),
            ',' => found.push(Token::Comma),
            ':' => found.push(Token::Colon),
            '\'' => found.push(Token::Text(quoted(&mut rest, text)?)),
            letter => {
                let mut word = letter.to_string();
                while let Some(more) = rest.next_if(|c| !" (),:'".contains(*c)) {
                    word.push(more);
                }
                if rest.next_if_eq(&'\'').is_some() {
                    found.push(Token::Text(quoted(&mut rest, text)?));
                } else {
                    found.push(Token::Word(word));
                }
            }
        }
    }
    Ok(found)
}

/// Reads up to the closing quote; a doubled quote stands for one.
fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, whole: &str) -> Result<String, String> {
    let mut text = String::new();
    while let Some(next) = rest.next() {
        if next != '\'' {
            text.push(next);
        } else if rest.next_if_eq(&'\'').is_some() {
            text.push('\'');
        } else {
            return Ok(text);
        }
    }
    Err(format!("$filter: a quote is not closed in {whole:?}"))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// The name that stands for a list's member inside `any`.
    variable: Option<String>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn expect(&mut self, wanted: &Token) -> Result<(), String> {
        match self.next() {
            Some(found) if found == *wanted => Ok(()),
            found => Err(format!("$filter: expected {wanted:?}, found {found:?}")),
        }
    }

    fn takes(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(next)) if next == word);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Filter, String> {
        let mut left = self.and()?;
        while self.takes("or") {
            left = Filter::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Filter, String> {
        let mut left = self.term()?;
        while self.takes("and") {
            left = Filter::And(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Filter, String> {
        match self.next() {
            Some(Token::Open) => {
                let inner = self.or()?;
                self.expect(&Token::Close)?;
                Ok(inner)
            }
            Some(Token::Word(word)) if word == "startswith" => {
                self.expect(&Token::Open)?;
                let path = self.path()?;
                self.expect(&Token::Comma)?;
                let text = self.literal()?;
                self.expect(&Token::Close)?;
                Ok(Filter::StartsWith { path, text })
            }
            Some(Token::Word(word)) if word.ends_with("/any") => self.any(word.trim_end_matches("/any")),
            Some(Token::Word(word)) => {
                let path = self.split(&word);
                match self.next() {
                    Some(Token::Word(op)) if op == "eq" => Ok(Filter::Equal { path, text: self.literal()? }),
                    Some(Token::Word(op)) if op == "ne" => Ok(Filter::NotEqual { path, text: self.literal()? }),
                    op => Err(format!("$filter: only eq and ne are simulated, found {op:?}")),
                }
            }
            other => Err(format!("$filter: expected a field, found {other:?}")),
        }
    }

    fn any(&mut self, list: &str) -> Result<Filter, String> {
        let path = self.split(list);
        self.expect(&Token::Open)?;
        let Some(Token::Word(variable)) = self.next() else {
            return Err("$filter: any needs a variable".into());
        };
        self.expect(&Token::Colon)?;
        let outer = self.variable.replace(variable);
        let inner = self.or()?;
        self.variable = outer;
        self.expect(&Token::Close)?;
        Ok(Filter::Any { path, inner: Box::new(inner) })
    }

    fn path(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(self.split(&word)),
            other => Err(format!("$filter: expected a field, found {other:?}")),
        }
    }

    fn split(&self, word: &str) -> Vec<String> {
        let mut path: Vec<String> = word.split('/').map(str::to_owned).collect();
        if self.variable.is_some() && path.first() == self.variable.as_ref() {
            path.remove(0);
        }
        path
    }

    fn literal(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Text(text)) => Ok(text),
            Some(Token::Word(word)) if word == "true" || word == "false" || word.parse::<i64>().is_ok() => Ok(word),
            other => Err(format!("$filter: expected a literal, found {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(filter: &str, entity: &Value) -> bool {
        Filter::parse(filter).expect(filter).matches(entity)
    }

    #[test]
    fn a_filter_selects_by_name_enumeration_and_list_member() {
        let task = json!({ "name": "it's", "status": "QUEUED", "cluster": { "extId": "c" },
            "entitiesAffected": [{ "extId": "a" }, { "extId": "b" }] });
        assert!(matches("name eq 'it''s'", &task));
        assert!(!matches("name eq 'its'", &task));
        assert!(matches("cluster/extId eq 'c' and startswith(name, 'it')", &task));
        assert!(matches("entitiesAffected/any(e:e/extId eq 'b')", &task));
        assert!(!matches("entitiesAffected/any(e:e/extId eq 'd')", &task));
        let open = "(status eq Prism.Config.TaskStatus'QUEUED' or status eq Prism.Config.TaskStatus'RUNNING')";
        assert!(matches(open, &task));
        assert!(!matches(&format!("{open} and name ne 'it''s'"), &task));
    }

    #[test]
    fn a_filter_that_is_not_understood_is_refused() {
        for text in ["name", "name eq", "name like 'x'", "name eq 'x", "name eq 'x' 'y'", "contains(name,'x')"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
