//! What an object store's refusal means, for a person: which key of the Secret, which bucket, which object.
//!
//! The classes of errors are those of [S3], [Google's XML API][GCS] and [Azure Blob Storage][Azure]; where one is not known
//! here, the status decides.
//!
//! [S3]: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
//! [GCS]: https://cloud.google.com/storage/docs/xml-api/reference-status
//! [Azure]: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes

use std::error::Error as StdError;
use std::io;

use ortolan_protocol::failure::{Failure, FailureReason};
use reqwest::StatusCode;

use super::super::address::{causes, unreachable};
use super::service::{NotSent, Refusal};
use super::{Kind, Location, failure};

/// Signatures are refused beyond about a quarter of an hour; a clock that is off by this many seconds is worth a word.
const SKEW: i64 = 300;

/// As whom a store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// As nobody.
    Anonymous,
    /// With the keys of the Secret or of the environment.
    Keys,
    /// As the pod's service account, through a token that the cloud gave it.
    Pod,
}

/// What was asked of whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub location: &'a Location,
    pub host: &'a str,
    pub identity: Identity,
}

impl Asked<'_> {
    /// The failure of a request for the object.
    pub fn failure(&self, error: &(dyn StdError + 'static)) -> Failure {
        match self.without_answer(error) {
            Ok(refusal) => self.of_refusal(refusal),
            Err(failure) => failure,
        }
    }

    /// The failure of the request that was to tell who we are.
    pub fn identity_failure(&self, error: &(dyn StdError + 'static)) -> Failure {
        let refusal = match self.without_answer(error) {
            Ok(refusal) => refusal,
            Err(failure) => return failure,
        };
        let answer = refusal.words();
        if refusal.may_pass() {
            return failure(
                FailureReason::SourceUnreachable,
                &format!("{answer} when asked for a token: it has a problem of its own"),
            );
        }
        let whose = match self.identity {
            Identity::Keys => {
                "the client whose AZURE_CLIENT_ID and AZURE_CLIENT_SECRET stand in the credentials Secret"
            }
            _ => "the pod's service account: see what ties it to an identity of the cloud",
        };
        failure(FailureReason::SourceForbidden, &format!("{answer} and gives no token to {whose}{}", refusal.clock()))
    }

    /// The store's answer, or the failure of a request that got none.
    fn without_answer<'e>(&self, error: &'e (dyn StdError + 'static)) -> Result<&'e Refusal, Failure> {
        if let Some(refusal) = find::<Refusal>(error) {
            return Ok(refusal);
        }
        if let Some(NotSent(failure)) = find(error) {
            return Err(failure.clone());
        }
        if find::<reqwest::Error>(error).is_some() || find::<io::Error>(error).is_some() {
            return Err(unreachable(self.host, error));
        }
        // The crate's own words may hold what was sent or received.
        let message = format!("{} gave an answer for {} that cannot be understood", self.host, self.location);
        Err(failure(FailureReason::SourceUnreachable, &message))
    }

    fn of_refusal(&self, refusal: &Refusal) -> Failure {
        let Location { kind, bucket, .. } = self.location;
        let (what, object) = (kind.bucket(), self.location);
        if let Some((reason, message)) = self.of_code(refusal) {
            return failure(reason, &message);
        }
        let answer = refusal.words();
        match refusal.status {
            StatusCode::NOT_FOUND => failure(FailureReason::SourceNotFound, &format!("{answer}: there is no {object}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = format!("{answer}: {}{}", self.denied(), refusal.clock());
                failure(FailureReason::SourceForbidden, &message)
            }
            status if status.is_redirection() => {
                let region = refusal
                    .region
                    .as_deref()
                    .map_or_else(|| "is somewhere else".to_owned(), |region| format!("is in region {region}"));
                let message = format!("{answer}: {what} '{bucket}' {region}; {}", self.where_to_say_where());
                failure(FailureReason::SourceInvalid, &message)
            }
            _ if refusal.may_pass() => failure(
                FailureReason::SourceUnreachable,
                &format!("{answer} when asked for {object}: it is busy or has a problem of its own"),
            ),
            _ => failure(FailureReason::SourceInvalid, &format!("{answer} when asked for {object}{}", refusal.clock())),
        }
    }

    /// What the class of the error tells beyond the status.
    fn of_code(&self, refusal: &Refusal) -> Option<(FailureReason, String)> {
        let Location { kind, bucket, .. } = self.location;
        let (host, what, object) = (&refusal.host, kind.bucket(), self.location);
        let forbidden = |message: String| Some((FailureReason::SourceForbidden, message));
        match refusal.code.as_deref()? {
            "NoSuchBucket" | "ContainerNotFound" => {
                Some((FailureReason::SourceNotFound, format!("there is no {what} '{bucket}' at {host}")))
            }
            "NoSuchKey" | "BlobNotFound" => {
                Some((FailureReason::SourceNotFound, format!("there is no {object} at {host}")))
            }
            "InvalidAccessKeyId" => forbidden(format!("{host} does not know the key that AWS_ACCESS_KEY_ID names")),
            "SignatureDoesNotMatch" => forbidden(format!(
                "{host} does not accept the signature: AWS_SECRET_ACCESS_KEY is not the one that belongs to AWS_ACCESS_KEY_ID"
            )),
            "ExpiredToken" | "InvalidToken" if self.identity == Identity::Keys => {
                forbidden(format!("{host} does not accept AWS_SESSION_TOKEN: it has expired or belongs to other keys"))
            }
            "ExpiredToken" | "InvalidToken" => forbidden(format!(
                "{host} does not accept the token that the pod's service account was given: the token service belongs to another cloud or store"
            )),
            "RequestTimeTooSkewed" => {
                forbidden(format!("{host} does not accept the time of the request{}", refusal.clock()))
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                let region = refusal.region.as_deref().unwrap_or("another one than AWS_REGION says");
                let message = format!("the region of {what} '{bucket}' is {region}: {}", self.where_to_say_where());
                Some((FailureReason::CredentialsInvalid, message))
            }
            "PublicAccessNotPermitted" => forbidden(format!("{}: {}", refusal.words(), self.denied())),
            "InvalidObjectState" | "BlobArchived" => {
                Some((FailureReason::SourceInvalid, format!("{object} at {host} is archived: restore it first")))
            }
            "InvalidBucketName" => {
                Some((FailureReason::SourceInvalid, format!("{host} cannot have a {what} of the name '{bucket}'")))
            }
            _ => None,
        }
    }

    fn denied(&self) -> String {
        let object = self.location;
        match (self.identity, self.location.kind) {
            (Identity::Anonymous, _) => format!(
                "{object} is not public, and there are no credentials: set spec.model.credentialsSecret, or spec.server.serviceAccountName to one with an identity of the cloud"
            ),
            (Identity::Keys, Kind::Azure) => format!(
                "the credentials in the Secret are not accepted for {object}: they are wrong or expired, or may not read it"
            ),
            (Identity::Keys, _) => format!(
                "the credentials may not read {object}; a store also says so where there is no such object and they may not list the bucket"
            ),
            (Identity::Pod, _) => format!("the identity of the pod's service account may not read {object}"),
        }
    }

    fn where_to_say_where(&self) -> &'static str {
        match self.location.kind {
            Kind::S3 => "the credentials Secret can name it by AWS_REGION, and a store of its own by AWS_ENDPOINT_URL",
            Kind::Google => "the credentials Secret can name the store by GOOGLE_BASE_URL",
            Kind::Azure => "the credentials Secret can name the store by AZURE_STORAGE_ENDPOINT",
        }
    }
}

impl Refusal {
    fn words(&self) -> String {
        let Self { host, status, code, .. } = self;
        match code {
            Some(code) => format!("{host} answered {} ({code})", status.as_u16()),
            None => format!("{host} answered {}", status.as_u16()),
        }
    }

    /// Whether the same request may succeed a little later.
    fn may_pass(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    }

    /// A word about clocks, where they are apart.
    fn clock(&self) -> String {
        match self.skew {
            Some(seconds) if seconds > SKEW => format!("; this node's clock is {seconds} s ahead of the store's"),
            Some(seconds) if seconds < -SKEW => format!("; this node's clock is {} s behind the store's", -seconds),
            _ => String::new(),
        }
    }
}

fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(scheme: &str, identity: Identity, refusal: &Refusal) -> Failure {
        let location = Location::parse(scheme, "models/digits/m.onnx").unwrap().unwrap();
        Asked { location: &location, host: "store", identity }.of_refusal(refusal)
    }

    fn refusal(status: u16, code: &str) -> Refusal {
        let code = Some(code.to_owned()).filter(|code| !code.is_empty());
        let status = StatusCode::from_u16(status).unwrap();
        Refusal { host: "store.example".to_owned(), status, code, region: None, skew: Some(2) }
    }

    #[test]
    fn every_refusal_has_its_class_and_says_what_to_look_at() {
        use FailureReason::{CredentialsInvalid, SourceForbidden, SourceInvalid, SourceNotFound, SourceUnreachable};
        use Identity::{Anonymous, Keys, Pod};
        for (scheme, identity, status, code, reason, words) in [
            ("s3", Keys, 404, "NoSuchBucket", SourceNotFound, "there is no bucket 'models' at store.example"),
            ("s3", Keys, 404, "NoSuchKey", SourceNotFound, "no object 'digits/m.onnx' in bucket 'models'"),
            ("az", Keys, 404, "ContainerNotFound", SourceNotFound, "no container 'models'"),
            ("gs", Pod, 404, "", SourceNotFound, "no object 'digits/m.onnx'"),
            ("s3", Keys, 403, "InvalidAccessKeyId", SourceForbidden, "AWS_ACCESS_KEY_ID"),
            ("s3", Keys, 403, "SignatureDoesNotMatch", SourceForbidden, "AWS_SECRET_ACCESS_KEY"),
            ("s3", Keys, 400, "ExpiredToken", SourceForbidden, "AWS_SESSION_TOKEN"),
            ("s3", Pod, 400, "InvalidToken", SourceForbidden, "service account"),
            ("s3", Keys, 403, "AccessDenied", SourceForbidden, "may not list the bucket"),
            ("s3", Anonymous, 403, "AccessDenied", SourceForbidden, "spec.model.credentialsSecret"),
            ("gs", Pod, 403, "AccessDenied", SourceForbidden, "the pod's service account may not read"),
            ("az", Keys, 403, "AuthenticationFailed", SourceForbidden, "wrong or expired"),
            ("s3", Keys, 301, "PermanentRedirect", CredentialsInvalid, "AWS_REGION"),
            ("s3", Keys, 403, "InvalidObjectState", SourceInvalid, "archived"),
            ("s3", Keys, 400, "InvalidBucketName", SourceInvalid, "of the name 'models'"),
            ("s3", Keys, 418, "Teapot", SourceInvalid, "418 (Teapot)"),
            ("s3", Keys, 503, "SlowDown", SourceUnreachable, "503 (SlowDown)"),
            ("gs", Keys, 429, "", SourceUnreachable, "429"),
        ] {
            let failure = told(scheme, identity, &refusal(status, code));
            assert_eq!(failure.reason, reason, "{}", failure.message);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    #[test]
    fn a_clock_that_is_off_and_the_right_region_are_told() {
        let late = Refusal { skew: Some(-3600), ..refusal(403, "RequestTimeTooSkewed") };
        let failure = told("s3", Identity::Keys, &late);
        assert!(failure.message.ends_with("clock is 3600 s behind the store's"), "{}", failure.message);
        let elsewhere =
            Refusal { region: Some("eu-west-1".to_owned()), ..refusal(400, "AuthorizationHeaderMalformed") };
        let failure = told("s3", Identity::Keys, &elsewhere);
        assert_eq!(failure.reason, FailureReason::CredentialsInvalid);
        assert!(failure.message.contains("eu-west-1"), "{}", failure.message);
    }
}
