//! Lists come in pages.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::refusal::Refusal;
use super::store::Store;
use super::switches::PageHeaders;

/// The parameters of a call in their order; a name may come more than once.
pub type Params = Vec<(String, String)>;

/// What is given per page unless the caller says.
const DEFAULT_PAGE: usize = 20;

/// The value of a parameter.
pub fn param<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Every value of a parameter that may come more than once: `refs[]`, or `refs` with commas.
pub fn list<'a>(params: &'a Params, name: &str) -> Vec<&'a str> {
    let many = format!("{name}[]");
    let of = |(known, value): &'a (String, String)| match known == name {
        true => value.split(',').collect(),
        false if *known == many => vec![value.as_str()],
        false => Vec::new(),
    };
    params.iter().flat_map(of).collect()
}

fn number(params: &Params, name: &str, default: usize) -> Result<usize, Refusal> {
    let Some(text) = param(params, name) else { return Ok(default) };
    let number = text.parse().map_err(|_| Refusal::parameter(&format!("{name} is invalid")))?;
    if number == 0 { Err(Refusal::parameter(&format!("{name} does not have a valid value"))) } else { Ok(number) }
}

/// The page that was asked for, with the headers that lead on.
pub fn page(store: &Store, uri: &Uri, params: &Params, items: Vec<Value>) -> Result<Response, Refusal> {
    let settings = store.switches.now();
    let size = number(params, "per_page", DEFAULT_PAGE)?.min(settings.largest_page);
    let number = number(params, "page", 1)?;
    let total = items.len();
    let pages = total.div_ceil(size).max(1);
    let next = (number < pages).then_some(number + 1);
    let shown: Vec<Value> = items.into_iter().skip((number - 1) * size).take(size).collect();
    let mut response = Json(Value::Array(shown)).into_response();

    let own_url = store.url.get().cloned().unwrap_or_default();
    let base = settings.external_url.unwrap_or(own_url);
    let address = |page: usize| {
        let others = params.iter().filter(|(name, _)| name != "page");
        let query =
            others.map(|(name, value)| (name.clone(), value.clone())).chain([("page".into(), page.to_string())]);
        let mut url = reqwest::Url::parse(&base).ok()?;
        url.set_path(uri.path());
        url.query_pairs_mut().extend_pairs(query);
        Some(url.to_string())
    };
    let link = |page: usize, relation: &str| Some(format!("<{}>; rel=\"{relation}\"", address(page)?));
    let previous = (number > 1).then(|| number - 1);
    let links = [
        previous.and_then(|page| link(page, "prev")),
        next.and_then(|page| link(page, "next")),
        link(1, "first"),
        link(pages, "last"),
    ];
    let links = links.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let text = |page: Option<usize>| page.map_or_else(String::new, |page| page.to_string());
    let numbers = [
        ("x-page", number.to_string()),
        ("x-per-page", size.to_string()),
        ("x-next-page", text(next)),
        ("x-prev-page", text(previous)),
        ("x-total", total.to_string()),
        ("x-total-pages", pages.to_string()),
    ];
    let headers = response.headers_mut();
    if settings.page_headers != PageHeaders::NumbersOnly
        && let Ok(value) = HeaderValue::from_str(&links)
    {
        headers.insert(header::LINK, value);
    }
    if settings.page_headers != PageHeaders::LinkOnly {
        for (name, value) in numbers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
    Ok(response)
}
