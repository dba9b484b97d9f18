//! What every call passes before it reaches a handler: the log, the switches, the token, the project.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::model::{Role, Scope, User};
use super::refusal::{Refusal, switched};
use super::shapes::PROJECT_ID;
use super::store::{Call, Store};
use super::switches;

/// What the gate in front of the handlers needs.
pub struct Gate {
    pub store: Arc<Store>,
    pub log: Mutex<File>,
}

/// Notes the call, throws the switches and checks who is there.
pub async fn enter(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let user = gate.user(request.headers());
    tokio::time::sleep(gate.store.switches.now().answer_delay).await;
    let response = if let Some(refusal) = gate.store.switches.take_refusal() {
        switched(refusal)
    } else {
        match gate.admit(user.as_ref(), &request) {
            Err(refusal) => refusal.into_response(),
            Ok(admitted) => {
                request.extensions_mut().insert(admitted);
                gate.maybe_lose(&method, next.run(request).await)
            }
        }
    };
    gate.note(Call {
        method: method.to_string(),
        path,
        user: user.map(|user| user.username),
        status: response.status().as_u16(),
    });
    response
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("private-token").or_else(|| text(header::AUTHORIZATION.as_str())?.strip_prefix("Bearer "))
}

impl Gate {
    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let token = token(headers)?;
        self.store.project.users.iter().find(|user| user.token == token).cloned()
    }

    /// Who may go on. A project that one may not see does not exist.
    fn admit(&self, user: Option<&User>, request: &Request) -> Result<User, Refusal> {
        let user = user.ok_or_else(Refusal::unauthorized)?;
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if changes && user.scope != Scope::Api {
            return Err(Refusal::scope());
        }
        let mut segments = request.uri().path().split('/').skip(3);
        if segments.next() == Some("projects") {
            let asked = segments.next().unwrap_or_default().replace("%2F", "/").replace("%2f", "/");
            let is_ours = asked == self.store.project.path || asked == PROJECT_ID.to_string();
            if !is_ours || user.role == Role::Stranger {
                return Err(Refusal::not_found("Project"));
            }
        }
        Ok(user.clone())
    }

    /// A change that took effect, and whose answer is lost on the way.
    fn maybe_lose(&self, method: &Method, response: Response) -> Response {
        let changed = *method != Method::GET && response.status().is_success();
        if changed && self.store.switches.take_loss() {
            return switched(switches::Refusal { status: StatusCode::BAD_GATEWAY.as_u16(), retry_after: None });
        }
        response
    }

    fn note(&self, call: Call) {
        let user = call.user.as_deref().unwrap_or("-");
        let line = format!("{} {} {} {} user={user}\n", jiff::Timestamp::now(), call.method, call.path, call.status);
        let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        self.store.state().calls.push(call);
    }
}
