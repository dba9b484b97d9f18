//! What the HTTP clients of the edges share.

use std::time::Duration;

use reqwest::{Client, ClientBuilder};

/// A client that always checks certificates: against `ca_pem` if given, else against the public authorities.
pub fn client(timeout: Duration, ca_pem: Option<&str>) -> Result<ClientBuilder, String> {
    let builder = Client::builder().timeout(timeout).connect_timeout(Duration::from_secs(10));
    let Some(pem) = ca_pem else { return Ok(builder) };
    let certificates =
        reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| format!("ca.crt: {error}"))?;
    Ok(builder.tls_certs_only(certificates))
}

/// The whole chain of an error: reqwest's own text stops before the cause that helps.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
