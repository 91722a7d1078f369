//! A client of the server under test: plain HTTP, so that a test sees exactly what is answered.

use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::multipart::Form;
use serde_json::Value;

/// A client with a key.
#[derive(Clone)]
pub struct Client {
    pub base: String,
    pub key: String,
    pub http: reqwest::Client,
}

/// A file to upload.
pub struct Part<'a> {
    pub filename: &'a str,
    pub purpose: &'a str,
    pub models: &'a [&'a str],
    pub content: Vec<u8>,
}

impl Client {
    pub fn new(base: &str, key: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(std::time::Duration::from_secs(90))
            .build()
            .unwrap();
        Self { base: base.to_owned(), key: key.to_owned(), http }
    }

    /// The same server, with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.key)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request(Method::POST, path).json(&body).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// Deletes a file.
    pub async fn remove(&self, file: &Value) {
        let id = file["id"].as_str().unwrap();
        let (status, answer) = self.delete(&format!("/v1/files/{id}")).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer, serde_json::json!({"id": id, "object": "file", "deleted": true}));
    }

    /// The deletion of a file once it is over.
    pub async fn purged(&self, file: &Value) -> Value {
        let path = format!("/v1/files/{}/deletion?wait=10", file["id"].as_str().unwrap());
        super::eventually(std::time::Duration::from_secs(60), async || {
            let (status, deletion) = self.get(&path).await;
            (status == 200 && deletion["status"] != "pending").then_some(deletion)
        })
        .await
    }

    pub fn form(part: Part<'_>) -> Form {
        let mut form = Form::new().text("purpose", part.purpose.to_owned());
        if !part.models.is_empty() {
            form = form.text("target_model_names", part.models.join(","));
        }
        let file =
            reqwest::multipart::Part::bytes(part.content).file_name(part.filename.to_owned());
        form.part("file", file.mime_str("application/octet-stream").unwrap())
    }

    /// `POST /v1/files`, whatever comes of it.
    pub async fn try_upload(&self, part: Part<'_>) -> (u16, Value) {
        let form = Self::form(part);
        answer(self.request(Method::POST, "/v1/files").multipart(form).send().await.unwrap()).await
    }

    /// Uploads a small file that is carried byte for byte.
    pub async fn upload(&self, models: &[&str]) -> Value {
        let content = b"some bytes\n".to_vec();
        let (status, file) = self
            .try_upload(Part { filename: "notes.txt", purpose: "user_data", models, content })
            .await;
        assert_eq!(status, 200, "{file}");
        file
    }

    pub async fn file(&self, id: &str) -> Value {
        let (status, file) = self.get(&format!("/v1/files/{id}")).await;
        assert_eq!(status, 200, "{file}");
        file
    }

    /// The file once it is in a final state.
    pub async fn settled(&self, id: &str) -> Value {
        super::eventually(std::time::Duration::from_secs(60), async || {
            let (status, file) = self.get(&format!("/v1/files/{id}?wait=10")).await;
            (status == 200 && file["status"] != "uploaded").then_some(file)
        })
        .await
    }
}

/// The status and the JSON of an answer.
pub async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
