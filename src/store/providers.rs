//! Where credentials may come from, in the order they are asked: environment, files of the official
//! tools, RRSA, the instance's role.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use reqsign_aliyun_oss::{
    ConfigFileCredentialProvider, CredentialsFileCredentialProvider, EcsRamRoleCredentialProvider,
    OssProfileCredentialProvider,
};
use reqsign_aws_v4::ProfileCredentialProvider;
use reqsign_core::{Context, Env, FileRead, HttpSend, ProvideCredential};
use tokio::io::AsyncReadExt;

use crate::keys::Dialect;

use super::answer::clean;
use super::credentials::Credential;
use super::error::StoreError;
use super::rrsa::Rrsa;
use super::transport::{Options, SendError, Transport, read_body};

/// The metadata service is one hop away; whoever has none should not wait for it.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// The most that the metadata service or a file may hold; real answers have under 4 KiB.
const MAX_SIZE: usize = 1024 * 1024;

/// The names of three environment variables: id, secret, token.
type Names = [&'static str; 3];

const OSS: [Names; 2] = [
    ["OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"],
    [
        "ALIBABA_CLOUD_ACCESS_KEY_ID",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        "ALIBABA_CLOUD_SECURITY_TOKEN",
    ],
];
const S3: [Names; 1] = [["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]];

/// All places, asked anew at each fetch: files and tokens are rotated under a running process.
///
/// Files and the instance's role are read by reqsign's providers. Our own are the environment
/// (reqsign passes over a half-set pair), RRSA (reqsign puts the token into the URL, where proxies
/// log it) and `.ossutilconfig` (reqsign has none).
pub(super) struct Chain {
    dialect: Dialect,
    env: Arc<dyn Env>,
    context: Context,
    rrsa: Rrsa,
    /// The instance's role has given credentials before: a failure now will pass.
    instance: AtomicBool,
}

/// Shows nothing of the environment, which holds secrets.
impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("dialect", &self.dialect)
            .field("rrsa", &self.rrsa)
            .finish_non_exhaustive()
    }
}

impl Chain {
    pub(super) fn new(dialect: Dialect, env: Arc<dyn Env>, rrsa: Rrsa) -> Result<Self, StoreError> {
        let transport = Transport::new(&Options {
            env: env.as_ref(),
            ca_bundle: None,
            connect_timeout: METADATA_TIMEOUT,
            answer_timeout: METADATA_TIMEOUT * 2,
            // the metadata service's address is link-local: no proxy reaches it
            proxied: false,
        })?;
        let context = Context::new()
            .with_env(SharedEnv(env.clone()))
            .with_file_read(Files)
            .with_http_send(Http(transport));
        Ok(Self::within(dialect, env, context, rrsa))
    }

    /// Asks where `context` leads.
    pub(super) fn within(
        dialect: Dialect,
        env: Arc<dyn Env>,
        context: Context,
        rrsa: Rrsa,
    ) -> Self {
        Self { dialect, env, context, rrsa, instance: AtomicBool::new(false) }
    }

    /// Asks each place until one has credentials.
    ///
    /// # Errors
    /// [`StoreError::NoCredentials`] if none has, and what a place says that has them but cannot
    /// give them.
    pub(super) async fn fetch(&self) -> Result<Credential, StoreError> {
        if let Some(credential) = ask_env(self.dialect, self.env.as_ref())? {
            return Ok(credential);
        }
        if self.dialect == Dialect::S3 {
            let profile = ProfileCredentialProvider::new().provide_credential(&self.context).await;
            let found = profile.map_err(|_| unreadable("~/.aws"))?;
            return found
                .filter(|c| !c.access_key_id.is_empty() && !c.secret_access_key.is_empty())
                .map(|c| {
                    Credential::new(c.access_key_id, c.secret_access_key, c.session_token, None)
                })
                .ok_or_else(|| self.nothing(None));
        }
        if let Some(credential) = self.ask_files().await? {
            return Ok(credential);
        }
        if let Some(credential) = self.rrsa.fetch(self.env.as_ref()).await? {
            return Ok(credential);
        }
        self.ask_instance().await
    }

    fn nothing(&self, detail: Option<String>) -> StoreError {
        let places = match self.dialect {
            Dialect::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, fill ~/.aws/credentials"
            }
            Dialect::Oss | Dialect::File => {
                "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, mount an RRSA token"
            }
        };
        StoreError::NoCredentials { places, detail }
    }

    async fn ask_files(&self) -> Result<Option<Credential>, StoreError> {
        if let Some(credential) = self.ask_ossutil().await {
            return Ok(Some(credential));
        }
        // errors are left out: their text may quote the file
        let context = &self.context;
        let found = OssProfileCredentialProvider::new().provide_credential(context).await;
        if let Some(found) = found.map_err(|_| unreadable("~/.oss/credentials"))?.and_then(usable) {
            return Ok(Some(found));
        }
        let found = CredentialsFileCredentialProvider::new().provide_credential(context).await;
        if let Some(found) = found.map_err(|_| unreadable("~/.alibabacloud"))?.and_then(usable) {
            return Ok(Some(found));
        }
        if self.env.var("ALIBABA_CLOUD_CREDENTIALS_FILE").is_none() {
            // as the Go and Python SDKs name it
            let found = CredentialsFileCredentialProvider::new()
                .with_credentials_file("~/.alibabacloud/credentials")
                .provide_credential(context)
                .await;
            let found = found.map_err(|_| unreadable("~/.alibabacloud/credentials"))?;
            if let Some(found) = found.and_then(usable) {
                return Ok(Some(found));
            }
        }
        let found = ConfigFileCredentialProvider::new().provide_credential(context).await;
        Ok(found.map_err(|_| unreadable("~/.aliyun/config.json"))?.and_then(usable))
    }

    async fn ask_ossutil(&self) -> Option<Credential> {
        let path = self.context.expand_home_dir("~/.ossutilconfig")?;
        let text = self.context.file_read_as_string(&path).await.ok()?;
        parse_ossutil(&text)
    }

    async fn ask_instance(&self) -> Result<Credential, StoreError> {
        let found = EcsRamRoleCredentialProvider::new().provide_credential(&self.context).await;
        match found {
            Ok(found) => {
                let found = found.and_then(usable).ok_or_else(|| self.nothing(None))?;
                self.instance.store(true, Ordering::Relaxed);
                Ok(found)
            }
            Err(error) => {
                let named = self.env.var("ALIBABA_CLOUD_ECS_METADATA").is_some();
                if named || self.instance.load(Ordering::Relaxed) {
                    let provider = "the instance's role";
                    // what follows a colon may be the answer's body, and hold a secret
                    let said = error.to_string();
                    let reason = clean(said.split(": ").next().unwrap_or_default());
                    return Err(StoreError::Credentials { provider, reason, transient: true });
                }
                Err(self.nothing(Some("no instance role either".to_owned())))
            }
        }
    }
}

fn ask_env(dialect: Dialect, env: &dyn Env) -> Result<Option<Credential>, StoreError> {
    let names: &[Names] = match dialect {
        Dialect::S3 => &S3,
        Dialect::Oss | Dialect::File => &OSS,
    };
    for &[id, secret, token] in names {
        match (set(env, id), set(env, secret)) {
            (Some(id), Some(secret)) => {
                return Ok(Some(Credential::new(id, secret, set(env, token), None)));
            }
            (Some(_), None) => {
                return Err(StoreError::HalfCredentials { set: id, missing: secret });
            }
            (None, Some(_)) => {
                return Err(StoreError::HalfCredentials { set: secret, missing: id });
            }
            (None, None) => {}
        }
    }
    Ok(None)
}

/// An environment variable that is set to something; Secrets made from files end in a newline.
pub(super) fn set(env: &dyn Env, name: &str) -> Option<String> {
    env.var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// `[Credentials]` (ossutil 1) or `[default]` (ossutil 2) of `~/.ossutilconfig`.
pub(super) fn parse_ossutil(text: &str) -> Option<Credential> {
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut ours = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            ours = ["credentials", "default"].contains(&section.to_ascii_lowercase().as_str());
        } else if let Some((name, value)) = line.split_once('=').filter(|_| ours) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim().to_ascii_lowercase().as_str() {
                "accesskeyid" => id = value,
                "accesskeysecret" => secret = value,
                "ststoken" | "securitytoken" => token = value,
                _ => {}
            }
        }
    }
    Some(Credential::new(id?, secret?, token, None))
}

fn usable(found: reqsign_aliyun_oss::Credential) -> Option<Credential> {
    let reqsign_aliyun_oss::Credential {
        access_key_id: id,
        access_key_secret: secret,
        security_token,
        expires_in,
    } = found;
    let token = security_token.filter(|token| !token.is_empty());
    let expires = expires_in.and_then(|time| DateTime::from_timestamp(time.as_second(), 0));
    let whole = !id.is_empty() && !secret.is_empty();
    whole.then(|| Credential::new(id, secret, token, expires))
}

fn unreadable(provider: &'static str) -> StoreError {
    let reason = "the file cannot be parsed: repair or remove it".to_owned();
    StoreError::Credentials { provider, reason, transient: false }
}

/// The environment as reqsign wants it.
struct SharedEnv(Arc<dyn Env>);

impl fmt::Debug for SharedEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedEnv")
    }
}

impl Env for SharedEnv {
    fn var(&self, name: &str) -> Option<String> {
        self.0.var(name)
    }

    fn vars(&self) -> std::collections::HashMap<String, String> {
        self.0.vars()
    }

    fn home_dir(&self) -> Option<std::path::PathBuf> {
        self.0.home_dir()
    }
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let failed =
            |error| reqsign_core::Error::config_invalid("cannot read a file").with_source(error);
        let mut contents = Vec::new();
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        // one byte more, so that a file that is too long is not taken for its beginning
        file.take(MAX_SIZE as u64 + 1).read_to_end(&mut contents).await.map_err(failed)?;
        match contents.len() {
            ..=MAX_SIZE => Ok(contents),
            _ => Err(reqsign_core::Error::config_invalid("a file is longer than any of its kind")),
        }
    }
}

#[derive(Debug)]
struct Http(Transport);

impl HttpSend for Http {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |why| reqsign_core::Error::unexpected(why).set_retryable(true);
        // connecting has a timeout of its own, and the answer comes at once
        let sent = self.0.send(request, METADATA_TIMEOUT * 2).await;
        let (parts, body) = sent
            .map_err(|error| match error {
                SendError::Late => failed("no answer"),
                SendError::Connect(_) | SendError::Certificate(_) | SendError::Broken(_) => {
                    failed("no connection")
                }
            })?
            .into_parts();
        let body = read_body(body, MAX_SIZE, METADATA_TIMEOUT, METADATA_TIMEOUT * 2).await;
        Ok(http::Response::from_parts(parts, body.map_err(|_| failed("no whole answer"))?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::HashMap;

    use reqsign_core::StaticEnv;

    use super::*;

    const ENDPOINT: &str = "ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT";

    fn chain(dialect: Dialect, vars: &[(&str, &str)], home: Option<&std::path::Path>) -> Chain {
        let mut envs: HashMap<String, String> =
            vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        // nobody listens on port 1
        envs.entry(ENDPOINT.to_owned()).or_insert_with(|| "http://127.0.0.1:1".to_owned());
        let env = Arc::new(StaticEnv { home_dir: home.map(Into::into), envs });
        let transport = Transport::new(&Options {
            env: env.as_ref(),
            ca_bundle: None,
            connect_timeout: METADATA_TIMEOUT,
            answer_timeout: METADATA_TIMEOUT * 2,
            proxied: false,
        });
        let rrsa = Rrsa::new(transport.unwrap(), "cn-hangzhou", false, METADATA_TIMEOUT);
        Chain::new(dialect, env, rrsa).unwrap()
    }

    async fn id(chain: &Chain) -> Result<String, StoreError> {
        chain.fetch().await.map(|credential| credential.id.clone())
    }

    #[tokio::test]
    async fn the_environment_comes_first() {
        let alibaba =
            [("ALIBABA_CLOUD_ACCESS_KEY_ID", "a"), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "s")];
        let oss = [("OSS_ACCESS_KEY_ID", "o\n"), ("OSS_ACCESS_KEY_SECRET", "s")];
        let aws = [("AWS_ACCESS_KEY_ID", "w"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let all = [&alibaba[..], &oss[..], &aws[..]].concat();
        assert_eq!(id(&chain(Dialect::Oss, &all, None)).await.unwrap(), "o");
        assert_eq!(id(&chain(Dialect::Oss, &alibaba, None)).await.unwrap(), "a");
        assert_eq!(id(&chain(Dialect::S3, &all, None)).await.unwrap(), "w");
    }

    #[tokio::test]
    async fn half_a_pair_is_an_error() {
        for (vars, missing) in [
            (("OSS_ACCESS_KEY_ID", "x"), "OSS_ACCESS_KEY_SECRET"),
            (("OSS_ACCESS_KEY_SECRET", "x"), "OSS_ACCESS_KEY_ID"),
            (("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "x"), "ALIBABA_CLOUD_ROLE_ARN"),
        ] {
            let error = id(&chain(Dialect::Oss, &[vars], None)).await.unwrap_err();
            assert!(error.to_string().contains(missing), "{error}");
        }
    }

    #[tokio::test]
    async fn nothing_names_the_variables() {
        for (dialect, name) in
            [(Dialect::Oss, "OSS_ACCESS_KEY_ID"), (Dialect::S3, "AWS_ACCESS_KEY_ID")]
        {
            let error = id(&chain(dialect, &[], None)).await.unwrap_err();
            assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
            assert!(error.to_string().contains(name), "{error}");
            // RRSA is for OSS alone
            assert_eq!(error.to_string().contains("RRSA"), dialect == Dialect::Oss, "{error}");
        }
    }

    #[tokio::test]
    async fn files_of_the_official_tools_are_read() {
        let ossutil = "[Credentials]\nlanguage=EN\nendpoint = x\naccessKeyID = u\n\
            accessKeySecret=s\nstsToken=t\n[Other]\naccessKeyID=v";
        let ini = "[default]\ntype = access_key\naccess_key_id = i\naccess_key_secret = s\n";
        let json = r#"{"current": "p", "profiles": [{"name": "p", "mode": "AK",
            "access_key_id": "j", "access_key_secret": "s"}]}"#;
        let aws = "[default]\naws_access_key_id = w\naws_secret_access_key = s\n";
        for (dialect, path, text, expected) in [
            (Dialect::Oss, ".ossutilconfig", ossutil, "u"),
            (Dialect::Oss, ".ossutilconfig", &ossutil.replace("Credentials", "default"), "u"),
            (Dialect::Oss, ".alibabacloud/credentials", ini, "i"),
            (Dialect::Oss, ".alibabacloud/credentials.ini", ini, "i"),
            (Dialect::Oss, ".aliyun/config.json", json, "j"),
            (Dialect::S3, ".aws/credentials", aws, "w"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            let found = id(&chain(dialect, &[], Some(home.path()))).await;
            assert_eq!(found.expect(path), expected);
        }
    }

    #[tokio::test]
    async fn a_broken_file_is_named_but_not_quoted() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aliyun")).unwrap();
        std::fs::write(home.path().join(".aliyun/config.json"), "{\"secret").unwrap();
        let error = id(&chain(Dialect::Oss, &[], Some(home.path()))).await.unwrap_err();
        assert!(error.to_string().contains(".aliyun/config.json"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
