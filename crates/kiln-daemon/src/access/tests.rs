use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;
use crate::config::PrincipalConfig;

const HERE: &str = "https://localhost:8441/";

struct Home {
    dir: tempfile::TempDir,
    config: Config,
    environment: Environment,
    access: Access,
}

fn principal(id: &str, role: Role, secret: &str) -> PrincipalConfig {
    let secret_hash = SecretHash::try_from(hash_secret(secret).unwrap()).unwrap();
    PrincipalConfig { id: id.to_owned(), name: None, role, secret_hash }
}

fn home(config: Config) -> Home {
    let dir = tempfile::tempdir().unwrap();
    let environment = Environment::open(dir.path(), &config).unwrap();
    let access = Access::open(dir.path(), &config, &environment).unwrap();
    Home { dir, config, environment, access }
}

impl Home {
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    fn operator_id(&self) -> String {
        read_operator(self.dir.path()).unwrap().unwrap().client_id
    }

    async fn issue(&self, id: &str, secret: &str) -> Result<IssuedToken, IssueError> {
        self.access.issue(id, Secret::from(secret.to_owned()), HERE, None).await
    }

    /// A token signed with this server's own key, saying what it likes.
    fn forge(&self, change: impl FnOnce(&mut Value)) -> String {
        let secret = self.file(IDENTITY_SECRET);
        let good = self.access.issue_identity(&Secret::from(secret), HERE, None).ok().unwrap();
        let mut claims = claims(&good.token);
        change(&mut claims);
        let key = std::fs::read(self.dir.path().join("token.key")).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(&key))
            .unwrap()
    }
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn the_operator_of_the_first_start_signs_in() {
    let home = home(Config::default());
    let (id, secret) = (home.operator_id(), home.file(OPERATOR_SECRET));
    assert!(secret.len() >= 43 && !secret.contains('\n'));
    let issued = home.issue(&id, &secret).await.ok().unwrap();
    assert_eq!(issued.expires_in, 3600);
    assert_eq!(issued.expires_on, issued.not_before + 3600);
    let principal = home.access.authenticate(&issued.token).unwrap();
    assert_eq!((principal.id.as_str(), principal.role), (id.as_str(), Role::Operator));
    let claims = claims(&issued.token);
    assert_eq!(claims["tid"], home.environment.tenant.as_str());
    assert_eq!((&claims["appid"], &claims["aud"]), (&json!(id), &json!(HERE)));
    assert!(uuid::Uuid::try_parse(claims["oid"].as_str().unwrap()).is_ok());
    assert_eq!(claims["roles"], json!(["Operator"]));

    // A second start keeps all of it, also when the secret was taken away to where it is needed.
    std::fs::remove_file(home.dir.path().join(OPERATOR_SECRET)).unwrap();
    let again = Access::open(home.dir.path(), &home.config, &home.environment).unwrap();
    assert_eq!(again.authenticate(&issued.token).unwrap(), principal);
    assert!(again.issue(&id.to_uppercase(), Secret::from(secret), HERE, None).await.is_ok());
    assert!(!home.dir.path().join(OPERATOR_SECRET).exists());
}

#[tokio::test]
async fn nobody_learns_whether_it_was_the_id_or_the_secret() {
    let home = home(Config::default());
    let (id, secret) = (home.operator_id(), home.file(OPERATOR_SECRET));
    let long = "x".repeat(MAX_SECRET + 1);
    for (id, secret) in [
        (id.as_str(), "wrong"),
        (&id, ""),
        (&id, &long),
        ("unknown", secret.as_str()),
        ("", &secret),
        (&"i".repeat(10_000), &secret),
        // Has its own door.
        (IDENTITY, &home.file(IDENTITY_SECRET)),
    ] {
        assert_eq!(home.issue(id, secret).await.err(), Some(IssueError::Denied));
    }
}

#[tokio::test]
async fn a_principal_that_is_taken_out_is_out_at_once() {
    let mut config = Config::default();
    config.access.principals =
        vec![principal("ci", Role::Operator, "one"), principal("eye", Role::Reader, "two")];
    let mut home = home(config);
    let ci = home.issue("ci", "one").await.ok().unwrap().token;
    let eye = home.issue("EYE", "two").await.ok().unwrap().token;
    assert_eq!(home.access.authenticate(&ci).unwrap().role, Role::Operator);
    assert_eq!(home.access.authenticate(&eye).unwrap().role, Role::Reader);

    // The role is the configuration's, not the token's.
    home.config.access.principals[0].role = Role::Reader;
    home.access.reload(&home.config);
    assert_eq!(home.access.authenticate(&ci).unwrap().role, Role::Reader);
    // A new secret: what was given for the old one is dead.
    home.config.access.principals[0] = principal("ci", Role::Operator, "other");
    home.access.reload(&home.config);
    assert_eq!(home.access.authenticate(&ci), Err(AuthError::Invalid));
    assert!(home.access.authenticate(&eye).is_ok());
    home.config.access.principals.pop();
    home.access.reload(&home.config);
    assert_eq!(home.access.authenticate(&eye), Err(AuthError::Invalid));
    assert_eq!(home.issue("eye", "two").await.err(), Some(IssueError::Denied));
}

#[tokio::test]
async fn managed_identity_has_a_secret_a_role_and_a_switch() {
    let mut home = home(Config::default());
    let issue =
        |home: &Home, secret: &str| home.access.issue_identity(&Secret::from(secret.to_owned()), HERE, None);
    let secret = home.file(IDENTITY_SECRET);
    let token = issue(&home, &secret).ok().unwrap().token;
    assert_eq!(home.access.authenticate(&token).unwrap().role, Role::Operator);
    assert_eq!(issue(&home, &secret[1..]).err(), Some(IssueError::Denied));
    assert_eq!(issue(&home, "").err(), Some(IssueError::Denied));
    home.config.access.managed_identity.role = Role::Reader;
    home.access.reload(&home.config);
    assert_eq!(home.access.authenticate(&token).unwrap().role, Role::Reader);
    home.config.access.managed_identity.enabled = false;
    home.access.reload(&home.config);
    assert_eq!(issue(&home, &secret).err(), Some(IssueError::Disabled));
    assert_eq!(home.access.authenticate(&token), Err(AuthError::Invalid));
}

#[test]
fn what_is_not_ours_is_refused() {
    let home = home(Config::default());
    let good = home.forge(|_| ());
    assert!(home.access.authenticate(&good).is_ok(), "the forger can do it right");

    let now = claims(&good)["iat"].as_u64().unwrap();
    let verdict = |change: &dyn Fn(&mut Value)| home.access.authenticate(&home.forge(change)).err();
    type Change = fn(&mut Value, u64);
    let table: [(Change, Option<AuthError>); 14] = [
        (|claims, now| claims["exp"] = json!(now - 31), Some(AuthError::Expired)),
        (|claims, now| claims["exp"] = json!(now - 5), None),
        (|claims, now| claims["nbf"] = json!(now + 600), Some(AuthError::Invalid)),
        (|claims, now| claims["nbf"] = json!(now + 5), None),
        (|claims, _| claims["aud"] = json!("https://elsewhere.example"), Some(AuthError::Audience)),
        (|claims, _| claims["aud"] = json!("https://management.azure.com/"), None),
        (|claims, _| claims["aud"] = json!(["https://localhost"]), Some(AuthError::Invalid)),
        (|claims, _| claims["iss"] = json!("urn:kiln:other"), Some(AuthError::Invalid)),
        (|claims, _| claims["tid"] = json!("other"), Some(AuthError::Invalid)),
        (|claims, _| claims["appid"] = json!("nobody"), Some(AuthError::Invalid)),
        (|claims, _| claims["kiln_sv"] = json!(""), Some(AuthError::Invalid)),
        (|claims, _| claims["exp"] = Value::Null, Some(AuthError::Invalid)),
        (|claims, _| drop(claims.as_object_mut().unwrap().remove("nbf")), Some(AuthError::Invalid)),
        (|claims, _| claims["roles"] = json!(["Reader"]), None),
    ];
    for (at, (change, expected)) in table.into_iter().enumerate() {
        assert_eq!(verdict(&|claims| change(claims, now)), expected, "row {at}");
    }

    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut changed = signature.to_owned();
    changed.replace_range(5..6, if &signature[5..6] == "A" { "B" } else { "A" });
    let other = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims(&good),
        &EncodingKey::from_secret(&[7; 32]),
    );
    let hs512 = {
        let key = std::fs::read(home.dir.path().join("token.key")).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::HS512), &claims(&good), &EncodingKey::from_secret(&key))
    };
    for token in [
        String::new(),
        "a.b.c".to_owned(),
        good[..good.len() - 1].to_owned(),
        format!("{good}."),
        format!("{}.{payload}.", encode(json!({"alg": "none", "typ": "JWT"}))),
        format!("{}.{payload}.{signature}", encode(json!({"alg": "none", "typ": "JWT"}))),
        format!("{header}.{payload}.{changed}"),
        format!("{header}.{}.{signature}", encode(json!({"appid": "x"}))),
        other.unwrap(),
        hs512.unwrap(),
        "x".repeat(100_000),
    ] {
        assert_eq!(home.access.authenticate(&token), Err(AuthError::Invalid), "{token:.80}");
    }
}

#[tokio::test]
async fn tokens_are_given_for_this_server_only() {
    let mut config = Config::default();
    config.tls.names = vec!["kiln.example.org".to_owned().try_into().unwrap()];
    let home = home(config);
    let secret = home.file(IDENTITY_SECRET);
    for (resource, given) in [
        ("https://localhost:8441", true),
        ("https://localhost:8441/", true),
        ("https://LOCALHOST:1//", true),
        ("https://[::1]:8441/", true),
        ("https://kiln.example.org", true),
        ("https://management.azure.com/", true),
        ("https://management.core.windows.net/", true),
        ("https://graph.microsoft.com", false),
        ("https://localhost.evil.example", false),
        ("https://localhost:8441@evil.example", false),
        ("https://localhost/path", false),
        ("http://localhost:8441", false),
        ("", false),
    ] {
        let issued = home.access.issue_identity(&Secret::from(secret.clone()), resource, None);
        assert_eq!(issued.is_ok(), given, "{resource}");
    }
}

#[tokio::test]
async fn guessing_ends_soon_and_others_still_get_in() {
    let home = home(Config::default());
    let (id, secret) = (home.operator_id(), home.file(OPERATOR_SECRET));
    let guess = |from: &str, secret: &str| {
        let from = Some(from.parse().unwrap());
        let (access, id, secret) = (home.access.clone(), id.clone(), Secret::from(secret.to_owned()));
        async move { access.issue(&id, secret, HERE, from).await }
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        tasks.spawn(guess("192.0.2.1", "wrong"));
    }
    let answers = tasks.join_all().await;
    let denied = answers.iter().filter(|answer| matches!(answer, Err(IssueError::Denied))).count();
    assert!((20..=22).contains(&denied), "side by side they count, too: {denied}");
    assert!(matches!(guess("192.0.2.1", &secret).await, Err(IssueError::Throttled { .. })));
    assert!(guess("192.0.2.2", &secret).await.is_ok());
}

#[test]
fn secrets_lie_in_private_files_and_in_no_message() {
    let home = home(Config::default());
    for name in ["token.key", OPERATOR, OPERATOR_SECRET, IDENTITY_SECRET] {
        let mode = std::fs::metadata(home.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(!home.file(OPERATOR).contains(&home.file(OPERATOR_SECRET)));
    for name in ["token.key", OPERATOR, IDENTITY_SECRET] {
        let path = home.dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, "canary").unwrap();
        let error = Access::open(home.dir.path(), &home.config, &home.environment).err().unwrap();
        let said = format!("{error} {error:?}");
        assert!(said.contains(name) && !said.contains("canary"), "{said}");
        std::fs::write(&path, good).unwrap();
    }
    assert!(hash_secret("").is_err());
}
