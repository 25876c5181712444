//! Keys and certificates of one cluster.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::Error;

/// A CA made for this run. Its files lie in the folder: `ca.crt`, `ca.key`, `sa.key`, `sa.pub`
/// (service accounts), and `NAME.crt`, `NAME.key` of every server.
#[derive(Debug)]
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca_pem: String,
}

impl Pki {
    /// Makes the CA and the key of service accounts.
    pub(crate) fn generate(folder: &Path) -> Result<Self, Error> {
        let name = "the cluster's CA";
        let failed = |source| Error::Certificate { name, source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "cluster CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_pem = ca.self_signed(&key).map_err(failed)?.pem();
        write(folder, "ca.crt", &ca_pem)?;
        write(folder, "ca.key", &key.serialize_pem())?;
        let accounts = KeyPair::generate()
            .map_err(|source| Error::Certificate { name: "the service accounts", source })?;
        write(folder, "sa.key", &accounts.serialize_pem())?;
        write(folder, "sa.pub", &accounts.public_key_pem())?;
        Ok(Self { issuer: Issuer::new(ca, key), ca_pem })
    }

    /// A server's certificate for host names and addresses.
    pub(crate) fn server(
        &self,
        folder: &Path,
        name: &'static str,
        hosts: &[&str],
    ) -> Result<(), Error> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let leaf =
            CertificateParams::new(hosts).map_err(|source| Error::Certificate { name, source })?;
        self.leaf(folder, name, leaf)
    }

    /// A user's certificate.
    pub(crate) fn client(
        &self,
        folder: &Path,
        name: &'static str,
        group: &str,
    ) -> Result<(), Error> {
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::OrganizationName, group);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(folder, name, leaf)
    }

    fn leaf(
        &self,
        folder: &Path,
        name: &'static str,
        mut leaf: CertificateParams,
    ) -> Result<(), Error> {
        let failed = |source| Error::Certificate { name, source };
        let key = KeyPair::generate().map_err(failed)?;
        leaf.distinguished_name.push(DnType::CommonName, name);
        let leaf = leaf.signed_by(&key, &self.issuer).map_err(failed)?;
        write(folder, &format!("{name}.crt"), &leaf.pem())?;
        write(folder, &format!("{name}.key"), &key.serialize_pem())
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(Error::file("write", &path))
}
