//! Uploads in parts that were never ended, since the process that sent them died. Their parts are kept, and paid for, and
//! are in no list of objects. S3 and Google list them for whoever asks in XML, which object_store does not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::AmazonS3;
use object_store::aws::AwsAuthorizer;
use object_store::client::HttpClient;
use object_store::client::HttpConnector as _;
use object_store::client::HttpRequest;
use object_store::client::HttpRequestBody;
use object_store::client::ReqwestConnector;
use object_store::gcp::GoogleCloudStorage;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer as _;
use reqwest::Method;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::BlobError;
use super::super::BlobKey;
use crate::clock::Timestamp;

/// Pages that are read of one list; there are 1,000 entries on each.
const MOST_PAGES: usize = 100;

/// The uploads in parts of a bucket.
#[derive(Debug)]
pub struct Uploads {
    client: HttpClient,
    access: Access,
    /// Before the keys: empty, or with a slash at its end.
    prefix: String,
}

#[derive(Debug)]
enum Access {
    S3 {
        store: Arc<AmazonS3>,
        region: String,
    },
    Google {
        store: Arc<GoogleCloudStorage>,
        /// The bucket, as `https://host/bucket/`.
        place: Url,
    },
}

impl Uploads {
    pub fn of_s3(
        store: Arc<AmazonS3>,
        region: Option<String>,
        prefix: &Path,
        options: &ClientOptions,
    ) -> Result<Self, BlobError> {
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        Self::new(Access::S3 { store, region }, prefix, options)
    }

    /// `endpoint`: where Google is, if not at its own address.
    pub fn of_google(
        store: Arc<GoogleCloudStorage>,
        endpoint: Option<&Url>,
        bucket: &str,
        prefix: &Path,
        options: &ClientOptions,
    ) -> Result<Self, BlobError> {
        let base = endpoint.map_or("https://storage.googleapis.com", Url::as_str);
        let place = format!("{}/{bucket}/", base.trim_end_matches('/'));
        let place = Url::parse(&place).map_err(failed)?;
        Self::new(Access::Google { store, place }, prefix, options)
    }

    fn new(access: Access, prefix: &Path, options: &ClientOptions) -> Result<Self, BlobError> {
        let client = ReqwestConnector::default().connect(options)?;
        let mut prefix = prefix.to_string();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        Ok(Self { client, access, prefix })
    }

    /// Calls off those of files that are here, to which nothing was added since `before`; answers how many.
    pub async fn abort_before(&self, before: Timestamp) -> Result<u64, BlobError> {
        let mut aborted = 0;
        let (mut key_marker, mut id_marker) = (String::new(), String::new());
        for _ in 0..MOST_PAGES {
            // Not by `prefix`, which MinIO takes for a whole key.
            let mut query = vec![("uploads", "")];
            if !key_marker.is_empty() {
                query.extend([("key-marker", &*key_marker), ("upload-id-marker", &*id_marker)]);
            }
            let page: List = self.ask("", &query).await?;
            for upload in &page.uploads {
                aborted += u64::from(self.abort_if_old(upload, before).await?);
            }
            if !page.is_truncated || page.next_key_marker.is_empty() {
                return Ok(aborted);
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
        tracing::warn!(
            "the bucket has more uploads in parts than are looked at; those far down its list may stay"
        );
        Ok(aborted)
    }

    async fn abort_if_old(&self, upload: &Upload, before: Timestamp) -> Result<bool, BlobError> {
        let is_ours = upload.key.strip_prefix(&self.prefix).is_some_and(BlobKey::is_of_file);
        if !is_ours || moment(&upload.initiated)? >= before {
            return Ok(false);
        }
        // It may be one that is slow: then a part came since.
        let Some(touched) = self.last_part(upload).await? else { return Ok(false) };
        if touched >= before {
            return Ok(false);
        }
        let store: &dyn MultipartStore = match &self.access {
            Access::S3 { store, .. } => &**store,
            Access::Google { store, .. } => &**store,
        };
        let key = Path::from(upload.key.as_str());
        let aborted = store.abort_multipart(&key, &upload.upload_id).await;
        match aborted.map_err(BlobError::from) {
            Ok(()) => {}
            // Ended meanwhile.
            Err(BlobError::Missing(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        tracing::info!(blob.key = %upload.key, "called off an upload in parts that nobody ended");
        Ok(true)
    }

    /// When the last part came, or the upload began; none where it has ended.
    async fn last_part(&self, upload: &Upload) -> Result<Option<Timestamp>, BlobError> {
        let mut last = moment(&upload.initiated)?;
        let mut marker = String::new();
        for _ in 0..MOST_PAGES {
            let mut query = vec![("uploadId", upload.upload_id.as_str())];
            if !marker.is_empty() {
                query.push(("part-number-marker", &marker));
            }
            let page: Parts = match self.ask(&upload.key, &query).await {
                Ok(page) => page,
                Err(BlobError::Missing(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            for part in &page.parts {
                last = last.max(moment(&part.last_modified)?);
            }
            if !page.is_truncated {
                break;
            }
            marker = page.next_part_number_marker;
        }
        Ok(Some(last))
    }

    /// Asks for a list.
    async fn ask<T: DeserializeOwned>(
        &self,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<T, BlobError> {
        let mut url = match &self.access {
            // Only the store itself knows how its address is made up.
            Access::S3 { store, .. } => {
                let path = Path::from(key);
                store.signed_url(Method::GET, &path, Duration::from_secs(60)).await?
            }
            Access::Google { place, .. } => place.join(key).map_err(failed)?,
        };
        url.query_pairs_mut().clear().extend_pairs(query);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(failed)?;
        match &self.access {
            Access::S3 { store, region } => {
                let credential = store.credentials().get_credential().await?;
                AwsAuthorizer::new(&credential, "s3", region).try_authorize(&mut request, None)?;
            }
            Access::Google { store, .. } => {
                let credential = store.credentials().get_credential().await?;
                let mut value = format!("Bearer {}", credential.bearer)
                    .parse::<reqwest::header::HeaderValue>()
                    .map_err(failed)?;
                value.set_sensitive(true);
                request.headers_mut().insert(AUTHORIZATION, value);
            }
        }
        let response = self.client.execute(request).await.map_err(failed)?;
        let status = response.status();
        let body = response.into_body().bytes().await.map_err(failed)?;
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            return Err(BlobError::answered(status.as_u16(), key, &text));
        }
        quick_xml::de::from_str(&text).map_err(failed)
    }
}

fn failed(error: impl fmt::Display) -> BlobError {
    BlobError::Store(anyhow::anyhow!("uploads in parts cannot be listed: {error}"))
}

fn moment(text: &str) -> Result<Timestamp, BlobError> {
    let moment: jiff::Timestamp = text.parse().map_err(failed)?;
    Ok(Timestamp(moment.as_millisecond()))
}

/// `ListMultipartUploadsResult`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct List {
    #[serde(rename = "Upload", default)]
    uploads: Vec<Upload>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: String,
}

/// `ListPartsResult`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parts {
    #[serde(rename = "Part", default)]
    parts: Vec<Part>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    last_modified: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_s3_writes_them() {
        let list: List = quick_xml::de::from_str(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket><KeyMarker></KeyMarker>
<UploadIdMarker></UploadIdMarker><NextKeyMarker>k2</NextKeyMarker><NextUploadIdMarker>i2</NextUploadIdMarker>
<MaxUploads>2</MaxUploads><IsTruncated>true</IsTruncated>
<Upload><Key>k1</Key><UploadId>i1</UploadId><Initiator><ID>x</ID></Initiator><StorageClass>STANDARD</StorageClass>
<Initiated>2026-11-10T20:48:33.000Z</Initiated></Upload>
<Upload><Key>k2</Key><UploadId>i2</UploadId><Initiated>2026-11-10T20:48:34Z</Initiated></Upload>
</ListMultipartUploadsResult>"#,
        )
        .unwrap();
        assert!(list.is_truncated);
        assert_eq!((&*list.next_key_marker, &*list.next_upload_id_marker), ("k2", "i2"));
        assert_eq!(list.uploads.len(), 2);
        let (first, second) = (&list.uploads[0], &list.uploads[1]);
        assert_eq!((&*first.key, &*first.upload_id), ("k1", "i1"));
        let [first, second] = [first, second].map(|upload| moment(&upload.initiated).unwrap());
        assert_eq!(second.since(first), Duration::from_secs(1));

        let empty: List = quick_xml::de::from_str(
            "<ListMultipartUploadsResult><Bucket>b</Bucket><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        )
        .unwrap();
        assert!(empty.uploads.is_empty() && !empty.is_truncated);
        let parts: Parts = quick_xml::de::from_str(
            "<ListPartsResult><UploadId>i</UploadId><PartNumberMarker>0</PartNumberMarker>\
             <NextPartNumberMarker>1</NextPartNumberMarker><IsTruncated>true</IsTruncated>\
             <Part><PartNumber>1</PartNumber><LastModified>2026-11-10T20:48:33.000Z</LastModified><Size>5</Size></Part>\
             </ListPartsResult>",
        )
        .unwrap();
        assert_eq!((&*parts.next_part_number_marker, parts.parts.len()), ("1", 1));
    }
}
