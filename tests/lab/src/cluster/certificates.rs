//! The cluster's own certificate authority, and the kubeconfig files made with it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// Signs the API server's certificate and those of its clients.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    /// Makes a new authority and writes its certificate to `ca.crt` in `directory`.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lab-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write_private(&directory.join("ca.crt"), &issuer.pem())?;
        Ok(Self { issuer, directory: directory.into() })
    }

    /// A server certificate for `names` (DNS names and IP addresses): `<name>.crt` and `<name>.key`.
    pub(super) fn server(&self, name: &str, names: &[&str]) -> Result<()> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_private(&self.directory.join(format!("{name}.crt")), &certificate.pem())?;
        write_private(&self.directory.join(format!("{name}.key")), &key.serialize_pem())
    }

    /// A fresh ECDSA key pair in PEM for service-account tokens: `<name>.key` and `<name>.pub`.
    pub(super) fn token_keys(&self, name: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        write_private(&self.directory.join(format!("{name}.key")), &key.serialize_pem())?;
        write_private(&self.directory.join(format!("{name}.pub")), &key.public_key_pem())
    }

    /// Who a client certificate says its bearer is: certificate and key in PEM. Kubernetes reads the user from CN and the group from O.
    fn client(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Writes a self-contained kubeconfig to `path`. `acting_as` is the user and the groups the API server shall treat the bearer as.
    pub(super) fn kubeconfig(
        &self,
        path: &Path,
        server: &str,
        (user, group): (&str, Option<&str>),
        acting_as: Option<(&str, &[&str])>,
    ) -> Result<()> {
        let (certificate, key) = self.client(user, group)?;
        let mut credentials = json!({
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        });
        if let Some((user, groups)) = acting_as {
            credentials["as"] = json!(user);
            credentials["as-groups"] = json!(groups);
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "lab",
                "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(self.issuer.pem())},
            }],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        });
        write_private(path, &serde_json::to_string_pretty(&config)?)
    }
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, content: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(content.as_bytes())?;
    Ok(())
}
