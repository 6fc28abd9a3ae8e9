//! Which store is asked, and as whom: from the keys of the Secret and the identity that the cloud gave the pod.
//!
//! Only what was meant for this pod is used: keys, a token file, the agent of EKS Pod Identity, and Google's metadata
//! service where it was asked for. Never the identity of the node, which the crate would fall back to.

use std::env;
use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ObjectStore, RetryConfig};
use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::Url;
use serde::Deserialize;

use super::super::credentials::Keys;
use super::answer::{Asked, Identity};
use super::service::Service;
use super::{Kind, Location, failure, invalid};
use crate::fetch::address;

/// A store that can be asked.
pub(super) struct Opened {
    pub store: Arc<dyn ObjectStore>,
    pub host: String,
    pub identity: Identity,
}

/// Prepares the store of `location`, and gets the token that it takes, if it takes one.
pub(super) async fn open(location: &Location, keys: &Keys, cloud_identity: bool) -> Result<Opened, Failure> {
    match location.kind {
        Kind::S3 => s3(location, keys).await,
        Kind::Google => google(location, keys, cloud_identity).await,
        Kind::Azure => azure(location, keys).await,
    }
}

async fn s3(location: &Location, keys: &Keys) -> Result<Opened, Failure> {
    let region = keys.get("AWS_REGION").or_else(|| keys.get("AWS_DEFAULT_REGION"));
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    if !region.chars().all(|character| character.is_ascii_alphanumeric() || character == '-') {
        return Err(keys.invalid("AWS_REGION", "is no region's name"));
    }
    let endpoint = endpoint(keys, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])?;
    let host = endpoint.as_ref().map_or_else(|| format!("s3.{region}.amazonaws.com"), |(_, host)| host.clone());
    let mut builder = AmazonS3Builder::new().with_bucket_name(&location.bucket).with_region(region).with_retry(once());
    if let Some((endpoint, _)) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let pair = (keys.get("AWS_ACCESS_KEY_ID"), keys.get("AWS_SECRET_ACCESS_KEY"));
    let (identity, mut agent) = (pod_identity_of_aws(), Vec::new());
    let identity = match (pair, identity) {
        ((Some(id), Some(secret)), _) => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            if let Some(token) = keys.get("AWS_SESSION_TOKEN") {
                builder = builder.with_token(token);
            }
            Identity::Keys
        }
        ((Some(_), None), _) => return Err(keys.missing("AWS_SECRET_ACCESS_KEY", "which goes with AWS_ACCESS_KEY_ID")),
        ((None, Some(_)), _) => return Err(keys.missing("AWS_ACCESS_KEY_ID", "which goes with AWS_SECRET_ACCESS_KEY")),
        ((None, None), Some(settings)) => {
            for (setting, value) in settings {
                if setting == "AWS_CONTAINER_CREDENTIALS_FULL_URI" {
                    agent.push(agent_url(&value)?);
                }
                if setting.ends_with("_TOKEN_FILE") {
                    token_file(setting, &value)?;
                }
                let known = setting.to_ascii_lowercase().parse();
                builder = builder.with_config(known.map_err(|_| internal("an AWS setting is not known"))?, value);
            }
            Identity::Pod
        }
        ((None, None), None) if keys.are_given() && keys.given("AWS_SESSION_TOKEN").is_some() => {
            return Err(keys.missing("AWS_ACCESS_KEY_ID", "which goes with AWS_SESSION_TOKEN"));
        }
        ((None, None), None) => {
            builder = builder.with_skip_signature(true);
            Identity::Anonymous
        }
    };
    let store = builder.with_http_connector(Service::new(agent)?).build().map_err(|_| unusable(location))?;
    if identity == Identity::Pod {
        let asked = Asked { location, host: "the cloud's token service", identity };
        store.credentials().get_credential().await.map_err(|error| asked.identity_failure(&error))?;
    }
    Ok(Opened { store: Arc::new(store), host, identity })
}

/// The settings of the identity that EKS gave this pod: by IRSA, or by its Pod Identity agent.
fn pod_identity_of_aws() -> Option<Vec<(&'static str, String)>> {
    let all = |names: &[&'static str]| -> Option<Vec<_>> {
        names.iter().map(|name| Some((*name, env::var(name).ok()?))).collect()
    };
    if let Some(mut web) = all(&["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"]) {
        let optional = ["AWS_ROLE_SESSION_NAME", "AWS_ENDPOINT_URL_STS"];
        web.extend(optional.iter().filter_map(|name| Some((*name, env::var(name).ok()?))));
        return Some(web);
    }
    all(&["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
}

/// The address of the Pod Identity agent: on this node, or over TLS, as Amazon's own clients demand.
fn agent_url(text: &str) -> Result<Url, Failure> {
    let url: Option<Url> = text.parse().ok();
    let is_near = |url: &Url| {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        url.scheme() == "https"
            || matches!(host, "169.254.170.23" | "fd00:ec2::23")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    url.filter(is_near).ok_or_else(|| {
        invalid("AWS_CONTAINER_CREDENTIALS_FULL_URI of the environment is not the address of an agent on this node")
    })
}

/// A token's file that cannot be read is told here: the crate would tell its path.
fn token_file(name: &str, path: &str) -> Result<(), Failure> {
    File::open(path).map(drop).map_err(|error| {
        let message = format!("the token's file that {name} of the environment names cannot be read: {error}");
        failure(FailureReason::CredentialsInvalid, &message)
    })
}

/// What is needed of a service account's key; the rest is the crate's.
#[derive(Deserialize)]
struct ServiceAccount {
    r#type: String,
    #[serde(rename = "private_key")]
    _private_key: String,
    #[serde(rename = "private_key_id")]
    _private_key_id: String,
    #[serde(rename = "client_email")]
    _client_email: String,
}

async fn google(location: &Location, keys: &Keys, cloud_identity: bool) -> Result<Opened, Failure> {
    let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(&location.bucket).with_retry(once());
    let mut host = "storage.googleapis.com".to_owned();
    if let Some((endpoint, named)) = endpoint(keys, &["GOOGLE_BASE_URL"])? {
        builder = builder.with_base_url(&endpoint);
        host = named;
    }
    let account = ["GOOGLE_SERVICE_ACCOUNT_KEY", "key.json"].into_iter().find_map(|key| Some((key, keys.get(key)?)));
    let (identity, mut metadata) = (account.is_some(), Vec::new());
    let identity = if let Some((key, json)) = account {
        let problem = match serde_json::from_str::<ServiceAccount>(&json) {
            Ok(account) if account.r#type == "service_account" => None,
            _ => Some(
                "is not the JSON of a service account's key, with type service_account, client_email and private_key",
            ),
        };
        if let Some(problem) = problem {
            return Err(keys.invalid(key, problem));
        }
        builder = builder.with_service_account_key(json);
        Identity::Keys
    } else if cloud_identity && !identity {
        metadata = metadata_urls()?;
        Identity::Pod
    } else {
        builder = builder.with_skip_signature(true);
        Identity::Anonymous
    };
    let store = builder.with_http_connector(Service::new(metadata)?).build().map_err(|_| match identity {
        Identity::Keys => failure(
            FailureReason::CredentialsInvalid,
            "the private_key in the service account's JSON is not an RSA key in PEM form",
        ),
        _ => unusable(location),
    })?;
    if identity == Identity::Pod {
        let asked = Asked { location, host: "Google's metadata service", identity };
        store.credentials().get_credential().await.map_err(|error| asked.identity_failure(&error))?;
    }
    Ok(Opened { store: Arc::new(store), host, identity })
}

/// Where the crate asks for a pod's token: by name, and then by address.
fn metadata_urls() -> Result<Vec<Url>, Failure> {
    let host = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let hosts = [host("GCE_METADATA_HOST", "metadata.google.internal"), host("GCE_METADATA_IP", "169.254.169.254")];
    let url = |host| format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token").parse();
    hosts.into_iter().map(url).collect::<Result<_, _>>().map_err(|_| internal("the metadata service has no address"))
}

async fn azure(location: &Location, keys: &Keys) -> Result<Opened, Failure> {
    let account = keys.get("AZURE_STORAGE_ACCOUNT_NAME");
    let account =
        account.ok_or_else(|| keys.missing("AZURE_STORAGE_ACCOUNT_NAME", "which says where the container is"))?;
    if !account.chars().all(|character| character.is_ascii_lowercase() || character.is_ascii_digit()) {
        return Err(keys.invalid("AZURE_STORAGE_ACCOUNT_NAME", "holds other characters than a-z and 0-9"));
    }
    let (endpoint, host) = endpoint(keys, &["AZURE_STORAGE_ENDPOINT"])?.unwrap_or_else(|| {
        let host = format!("{account}.blob.core.windows.net");
        (format!("https://{host}"), host)
    });
    let mut settings = vec![(AzureConfigKey::AccountName, account), (AzureConfigKey::Endpoint, endpoint)];
    let identity = azure_identity(keys, &mut settings)?;
    let mut builder = MicrosoftAzureBuilder::new().with_container_name(&location.bucket).with_retry(once());
    for (key, value) in settings {
        builder = builder.with_config(key, value);
    }
    let store = builder
        .with_skip_signature(identity == Identity::Anonymous)
        .with_http_connector(Service::new(Vec::new())?)
        .build()
        .map_err(|_| match identity {
            Identity::Keys => {
                keys.invalid("AZURE_STORAGE_ACCOUNT_KEY", "(or AZURE_STORAGE_SAS_TOKEN) is not one as Azure shows it")
            }
            _ => unusable(location),
        })?;
    if identity != Identity::Anonymous {
        let asked = Asked { location, host: "Azure's token service", identity };
        store.credentials().get_credential().await.map_err(|error| asked.identity_failure(&error))?;
    }
    Ok(Opened { store: Arc::new(store), host, identity })
}

/// As whom Azure is asked: by the account's key, a shared access signature, a client's secret, or the token file that
/// AKS gave the pod.
fn azure_identity(keys: &Keys, settings: &mut Vec<(AzureConfigKey, String)>) -> Result<Identity, Failure> {
    if let Some(key) = keys.get("AZURE_STORAGE_ACCOUNT_KEY") {
        settings.push((AzureConfigKey::AccessKey, key));
        return Ok(Identity::Keys);
    }
    if let Some(token) = keys.get("AZURE_STORAGE_SAS_TOKEN") {
        settings.push((AzureConfigKey::SasKey, token));
        return Ok(Identity::Keys);
    }
    let secret = keys.get("AZURE_CLIENT_SECRET");
    let token = env::var("AZURE_FEDERATED_TOKEN_FILE").ok();
    let (identity, credential) = match (secret, token) {
        (Some(secret), _) => (Identity::Keys, (AzureConfigKey::ClientSecret, secret)),
        (None, Some(file)) => {
            token_file("AZURE_FEDERATED_TOKEN_FILE", &file)?;
            (Identity::Pod, (AzureConfigKey::FederatedTokenFile, file))
        }
        (None, None) => return Ok(Identity::Anonymous),
    };
    settings.push(credential);
    for (key, setting) in
        [("AZURE_CLIENT_ID", AzureConfigKey::ClientId), ("AZURE_TENANT_ID", AzureConfigKey::AuthorityId)]
    {
        let value = keys.get(key).ok_or_else(|| keys.missing(key, "which goes with the client's secret or token"))?;
        settings.push((setting, value));
    }
    if let Ok(authority) = env::var("AZURE_AUTHORITY_HOST") {
        settings.push((AzureConfigKey::AuthorityHost, authority.trim_end_matches('/').to_owned()));
    }
    Ok(identity)
}

/// A store of one's own, from the first of these keys that is there, and its host.
fn endpoint(keys: &Keys, names: &[&str]) -> Result<Option<(String, String)>, Failure> {
    let Some((name, text)) = names.iter().find_map(|name| Some((*name, keys.get(name)?))) else { return Ok(None) };
    let url: Option<Url> = text.parse().ok();
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let url =
        url.filter(is_plain).ok_or_else(|| keys.invalid(name, "is not of the form https://HOST or http://HOST"))?;
    address::check(&url)?;
    Ok(Some((url.as_str().trim_end_matches('/').to_owned(), address::host(&url))))
}

/// The crate tries once; trying again is the same for all sources.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn unusable(location: &Location) -> Failure {
    invalid(&format!("no request can be made for {location}"))
}

fn internal(message: &str) -> Failure {
    failure(FailureReason::Internal, message)
}
