//! TLS on the public ports, with a certificate that is followed when it changes, and certificates of clients where they are
//! wanted.
//!
//! The files are laid out as Kubernetes and cert-manager lay out a Secret of TLS. A new certificate counts for new
//! connections; those that are open stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ortolan_protocol::failure::{Failure, FailureReason};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tracing::info;

use crate::follow::follow;

/// The files of a folder: the server's certificate and those that lead to it, its key, and who signs certificates of clients.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const CLIENT_AUTHORITIES: &str = "ca.crt";

/// What the server shows to its clients, and wants to see of them.
pub struct Tls {
    folder: PathBuf,
    clients: Option<PathBuf>,
    current: RwLock<(Files, Arc<ServerConfig>)>,
}

/// What stands in the files.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authorities: Option<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    /// Nothing of what it holds.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").field("asks_clients", &self.clients.is_some()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads `tls.crt` and `tls.key` of a folder. `clients`: a folder whose `ca.crt` has the authorities that clients must have
    /// a certificate of; without it they need none.
    pub fn read(folder: &Path, clients: Option<&Path>) -> Result<Self, Failure> {
        let read = || {
            let files = files(folder, clients)?;
            let config = settings(&files)?;
            Ok((files, Arc::new(config)))
        };
        let current = read().map_err(|message: String| Failure {
            reason: FailureReason::TlsInvalid,
            message: format!("TLS cannot be offered: {message}"),
        })?;
        let clients = clients.map(Path::to_owned);
        Ok(Self { folder: folder.to_owned(), clients, current: RwLock::new(current) })
    }

    /// What takes in a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1).into()
    }

    /// Follows the files for as long as it is polled.
    pub async fn follow(&self) {
        follow("the TLS certificate and its key", || self.look_again()).await;
    }

    fn look_again(&self) -> Result<(), String> {
        let files = files(&self.folder, self.clients.as_deref())?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == files {
            return Ok(());
        }
        let config = Arc::new(settings(&files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (files, config);
        info!("the TLS certificate changed; it counts for new connections");
        Ok(())
    }
}

/// An error names the file, without its folder.
fn files(folder: &Path, clients: Option<&Path>) -> Result<Files, String> {
    let read = |folder: &Path, name: &str| {
        fs::read(folder.join(name)).map_err(|error| format!("the file {name} cannot be read: {error}"))
    };
    Ok(Files {
        certificate: read(folder, CERTIFICATE)?,
        key: read(folder, KEY)?,
        client_authorities: clients.map(|folder| read(folder, CLIENT_AUTHORITIES)).transpose()?,
    })
}

fn settings(files: &Files) -> Result<ServerConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(CLIENT_AUTHORITIES, authorities)? {
                roots
                    .add(authority)
                    .map_err(|error| format!("the file {CLIENT_AUTHORITIES} cannot be used: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        }
    };
    let key =
        PrivateKeyDer::from_pem_slice(&files.key).map_err(|_| format!("the file {KEY} holds no private key in PEM"))?;
    let mut config = builder
        .with_single_cert(certificates(CERTIFICATE, &files.certificate)?, key)
        .map_err(|error| format!("the files {CERTIFICATE} and {KEY} cannot be used together: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("the file {file} holds no certificate in PEM")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, certificate: &str, key: &str) {
            fs::write(self.0.path().join(CERTIFICATE), certificate).unwrap();
            fs::write(self.0.path().join(KEY), key).unwrap();
        }
    }

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_folder() {
        let (folder, (certificate, key), (_, other)) = (Folder::new(), pair("a"), pair("b"));
        let message = |clients: Option<&Path>| Tls::read(folder.0.path(), clients).unwrap_err().message;
        assert!(message(None).contains("the file tls.crt cannot be read"));
        for (certificate, key, words) in [
            ("", &*key, "tls.crt holds no certificate"),
            (&*key, &*key, "tls.crt holds no certificate"),
            (&*certificate, "secret", "tls.key holds no private key"),
            (&*certificate, &*other, "cannot be used together"),
        ] {
            folder.put(certificate, key);
            let message = message(None);
            assert!(message.contains(words), "{message}");
            assert!(!message.contains(folder.0.path().to_str().unwrap()) && !message.contains("secret"), "{message}");
        }
        folder.put(&certificate, &key);
        assert!(message(Some(folder.0.path())).contains("the file ca.crt cannot be read"));
    }

    #[test]
    fn a_new_pair_is_taken_and_half_of_one_is_not() {
        let folder = Folder::new();
        let (certificate, key) = pair("a");
        folder.put(&certificate, &key);
        let tls = Tls::read(folder.0.path(), None).unwrap();
        let current = || Arc::clone(&tls.current.read().unwrap().1);
        let first = current();
        tls.look_again().unwrap();
        assert!(Arc::ptr_eq(&first, &current()), "nothing changed");
        let (certificate, key) = pair("b");
        fs::write(folder.0.path().join(CERTIFICATE), &certificate).unwrap();
        assert!(tls.look_again().is_err());
        assert!(Arc::ptr_eq(&first, &current()), "the old one counts");
        folder.put(&certificate, &key);
        tls.look_again().unwrap();
        assert!(!Arc::ptr_eq(&first, &current()));
    }
}
