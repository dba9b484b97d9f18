//! What every turn shares: clients, settings, and how often each object failed in a row.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client};

use super::MAX_BACKOFF;
use crate::edge::prism::{Access, PrismCentral, PrismElement, PrismError};
use crate::flow::migration::{Refusal, TargetVm};
use crate::plan::court::Verdict;
use crate::render::job::JobSettings;

/// What went wrong in a turn, by stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {what}")]
    Observe { what: String, source: kube::Error },
    #[error("record the status")]
    Record(#[source] kube::Error),
    #[error("{effect}")]
    Act { effect: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// A bounded label for logs and metrics.
    pub fn stage(&self) -> &'static str {
        match self {
            Error::Observe { .. } => "observe",
            Error::Record(_) => "record",
            Error::Act { .. } => "act",
        }
    }

    /// Someone else wrote first, and nothing was done.
    pub fn is_conflict(&self) -> bool {
        let error = match self {
            Error::Record(error) => Some(error),
            Error::Act { source, .. } => source.downcast_ref(),
            Error::Observe { .. } => None,
        };
        matches!(error, Some(kube::Error::Api(status)) if status.is_conflict())
    }
}

/// Shared by all turns.
pub struct Context {
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// Which Drover this is: uid of the operator's namespace.
    pub installation: String,
    pub jobs: JobSettings,
    failures: Mutex<HashMap<String, Failure>>,
    targets: Mutex<HashMap<String, (Instant, Vec<TargetVm>)>>,
    /// When a published commit was last seen on its branch, and which.
    commits: Mutex<HashMap<String, (Instant, String)>>,
    /// Judgements of Terraform plans, by whose and which plan.
    verdicts: Mutex<HashMap<String, (Instant, Verdict)>>,
    /// Review branches that were in order and not merged, and where each is merged.
    reviews: Mutex<HashMap<String, (Instant, Option<String>)>>,
    pub centrals: Clients<PrismCentral>,
    pub elements: Clients<PrismElement>,
}

/// Clients by server and Secret. One that is kept keeps its connections and what it knows of the server, and bounds the calls of all turns.
pub struct Clients<T>(Mutex<HashMap<(String, String), (Access, T)>>);

impl<T: Clone> Clients<T> {
    /// The client for this access; a new one if the Secret says something else than before.
    pub fn get(
        &self,
        secret: &str,
        access: Access,
        new: impl FnOnce(&Access) -> Result<T, PrismError>,
    ) -> Result<T, PrismError> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (access.url.clone(), secret.to_owned());
        if let Some((_, client)) = clients.get(&key).filter(|(known, _)| *known == access) {
            return Ok(client.clone());
        }
        let client = new(&access)?;
        clients.insert(key, (access, client.clone()));
        Ok(client)
    }
}

impl<T> Default for Clients<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// How long an answer of Prism is kept, for decisions that can do with an old one: hundreds of machines may be in step for days.
const TARGET_KEPT: Duration = Duration::from_secs(60);
/// How long a judgement is kept that nobody asks for: it can be made again.
const VERDICT_KEPT: Duration = Duration::from_secs(3600);
/// Pace of looking whether somebody has merged a review branch: that may take days.
const REVIEW_PACE: Duration = Duration::from_secs(30);

/// Failures in a row of one object.
#[derive(Clone)]
struct Failure {
    count: u32,
    refusal: Refusal,
}

impl Context {
    /// Reads the installation's identity.
    pub async fn new(client: Client, namespace: String, jobs: JobSettings) -> anyhow::Result<Self> {
        let own = Api::<Namespace>::all(client.clone()).get(&namespace).await.map_err(|error| {
            anyhow::Error::new(error)
                .context(format!("read the operator's own namespace {namespace}: may its service account get it?"))
        })?;
        let installation = own.metadata.uid.unwrap_or_default();
        Ok(Self {
            client,
            namespace,
            installation,
            jobs,
            failures: Mutex::default(),
            targets: Mutex::default(),
            commits: Mutex::default(),
            verdicts: Mutex::default(),
            reviews: Mutex::default(),
            centrals: Clients::default(),
            elements: Clients::default(),
        })
    }

    /// Notes a failed turn; returns how long to wait before the next.
    pub fn failed(&self, uid: &str, refusal: Refusal) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = failures.entry(uid.into()).or_insert(Failure { count: 0, refusal: refusal.clone() });
        failure.count = failure.count.saturating_add(1);
        failure.refusal = refusal;
        Duration::from_secs(1 << failure.count.min(6)).min(MAX_BACKOFF)
    }

    /// Notes a turn that went well.
    pub fn succeeded(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// What the last turn of an object met, if it failed.
    pub fn last_failure(&self, uid: &str) -> Option<Refusal> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(uid).map(|failure| failure.refusal.clone())
    }

    /// What Prism said of an object's target, if that is younger than `age`.
    pub fn recent_target(&self, uid: &str, age: Duration) -> Option<Vec<TargetVm>> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.get(uid).filter(|(at, _)| at.elapsed() < age).map(|(_, vms)| vms.clone())
    }

    /// Notes what Prism says of an object's target.
    pub fn remember_target(&self, uid: &str, vms: &[TargetVm]) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, (at, _)| at.elapsed() < TARGET_KEPT);
        targets.insert(uid.into(), (Instant::now(), vms.to_vec()));
    }

    /// The commit that was last seen on the branch for an object, if that is younger than `age`.
    pub fn recent_commit(&self, uid: &str, age: Duration) -> Option<String> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.get(uid).filter(|(at, _)| at.elapsed() < age).map(|(_, commit)| commit.clone())
    }

    /// Notes the commit that an object's file was seen on.
    pub fn remember_commit(&self, uid: &str, commit: &str) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.retain(|_, (at, _)| at.elapsed() < TARGET_KEPT);
        commits.insert(uid.into(), (Instant::now(), commit.into()));
    }

    /// The judgement of a plan, if it was judged before.
    pub fn verdict(&self, key: &str) -> Option<Verdict> {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, verdict) = verdicts.get_mut(key)?;
        *at = Instant::now();
        Some(verdict.clone())
    }

    /// Notes the judgement of a plan.
    pub fn remember_verdict(&self, key: String, verdict: Verdict) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.retain(|_, (at, _)| at.elapsed() < VERDICT_KEPT);
        verdicts.insert(key, (Instant::now(), verdict));
    }

    /// Whether an object's review branch was in order and not merged a moment ago.
    pub fn is_in_review(&self, uid: &str) -> bool {
        let reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        reviews.get(uid).is_some_and(|(at, _)| at.elapsed() < REVIEW_PACE)
    }

    /// Where an object's review branch is merged, if that is known.
    pub fn review_url(&self, uid: &str) -> Option<String> {
        let reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        reviews.get(uid).and_then(|(_, url)| url.clone())
    }

    /// Notes that an object's review branch is in order and not merged yet.
    pub fn remember_review(&self, uid: &str, url: Option<String>) {
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        reviews.retain(|_, (at, _)| at.elapsed() < 2 * REVIEW_PACE);
        reviews.insert(uid.into(), (Instant::now(), url));
    }

    /// The named keys of a Secret as text; an absent key is `None`. The error names the Secret, never its content.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<SecretText, Refusal> {
        let secret = Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await;
        match secret {
            Ok(Some(secret)) => Ok(SecretText(secret)),
            Ok(None) => {
                Err(Refusal::new("SecretNotFound", format!("there is no Secret {namespace}/{name}: create it")))
            }
            Err(error) => Err(Refusal::new("SecretUnreadable", format!("read Secret {namespace}/{name}: {error}"))),
        }
    }
}

/// A Secret's values as text.
pub struct SecretText(Secret);

impl SecretText {
    /// The values of `secret`.
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The value of `key`, if it is there and is text.
    pub fn get(&self, key: &str) -> Option<String> {
        let value = self.0.data.as_ref()?.get(key)?;
        String::from_utf8(value.0.clone()).ok().map(|text| text.trim_end_matches('\n').to_owned())
    }

    /// The value of `key`, or a refusal that names the Secret.
    pub fn require(&self, key: &str) -> Result<String, Refusal> {
        self.get(key).ok_or_else(|| self.lacks(key))
    }

    /// A refusal because `key` is not there.
    pub fn lacks(&self, key: &str) -> Refusal {
        let name = self.0.metadata.name.clone().unwrap_or_default();
        Refusal::new("SecretIncomplete", format!("Secret {name} has no text under key {key}: add it"))
    }
}
