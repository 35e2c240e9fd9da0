//! The playground: a page that asks one question for several personas at once. Its files are part of the program and it
//! loads nothing from anywhere else.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::IntoResponse,
    routing::get,
};

/// What the page may do: run our script, wear our style, and call this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // A new version of the server has a new page.
    (header::CACHE_CONTROL, "no-cache"),
];

/// The files, by path, with type and text.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("playground/index.html")),
    ("/playground/style.css", "text/css; charset=utf-8", include_str!("playground/style.css")),
    ("/playground/app.js", "text/javascript; charset=utf-8", include_str!("playground/app.js")),
    ("/playground/answer.js", "text/javascript; charset=utf-8", include_str!("playground/answer.js")),
    ("/playground/icon.svg", "image/svg+xml", include_str!("playground/icon.svg")),
];

/// Adds the page.
pub(crate) fn add(router: Router) -> Router {
    FILES.into_iter().fold(router, |router, (path, kind, text)| router.route(path, get(async move || file(kind, text))))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let mut response = ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response();
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for (path, _, text) in FILES {
            // The name space of SVG is a name, not an address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"), "{path}");
            assert!(!text.contains("<script>") && !text.contains("style=\"") && !text.contains("innerHTML"), "{path}");
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let (_, _, page) = FILES[0];
        let named = page.split('"').filter(|part| part.starts_with("/playground/"));
        assert!(named.clone().count() >= 3);
        for path in named {
            assert!(FILES.iter().any(|(known, ..)| *known == path), "{path}");
        }
    }
}
