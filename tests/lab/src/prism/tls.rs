//! A certificate authority of the simulator's own, and one server certificate for each of its two ports.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
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
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Simulated Prism CA");
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
