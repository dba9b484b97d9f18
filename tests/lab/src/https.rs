//! What the simulators serve on: a port of the loopback with TLS, and an authority of the simulator's own that signs for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

/// Signs the certificates of one simulator.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A server's certificate and key, both PEM.
pub struct ServerCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new(common_name: &str) -> Result<Self> {
        // Another part of the process may have chosen the same provider before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().context("generate the CA's key")?;
        Ok(Self(CertifiedIssuer::self_signed(params, key).context("sign the CA's certificate")?))
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for 127.0.0.1 and localhost.
    pub fn server(&self, common_name: &str) -> Result<ServerCertificate> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("generate a server's key")?;
        let certificate = params.signed_by(&key, &self.0).with_context(|| format!("sign {common_name}"))?;
        Ok(ServerCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    pub url: String,
    handle: Handle<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Runs on a thread and runtime of its own, so that tests can call it whether they block or are async.
    pub fn start(name: &'static str, router: Router, certificate: ServerCertificate) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).with_context(|| format!("bind a port for {name}"))?;
        listener.set_nonblocking(true)?;
        let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
        let handle = Handle::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let given = handle.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(async move {
                match bind(listener, certificate).await {
                    Err(error) => drop(ready.send(Err(error))),
                    Ok(server) => {
                        let _ = ready.send(Ok(()));
                        if let Err(error) = server.handle(given).serve(router.into_make_service()).await {
                            tracing::error!("{name} stopped serving: {error}");
                        }
                    }
                }
            });
        })?;
        is_ready.recv().with_context(|| format!("start {name}"))?.with_context(|| format!("set up TLS for {name}"))?;
        Ok(Self { url, handle, thread: Some(thread) })
    }
}

async fn bind(
    listener: TcpListener,
    certificate: ServerCertificate,
) -> Result<axum_server::Server<SocketAddr, RustlsAcceptor>> {
    let tls = RustlsConfig::from_pem(certificate.certificate_pem.into(), certificate.key_pem.into()).await?;
    Ok(axum_server::from_tcp_rustls(listener, tls)?)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
