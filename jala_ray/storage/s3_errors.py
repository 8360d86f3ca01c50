"""What the errors of boto3 and obstore mean. Imported only where an address is s3://."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import boto3.exceptions
import botocore.exceptions as aws
import obstore.exceptions
import urllib3.exceptions
from botocore.parsers import ResponseParserError

from jala_ray.storage.diagnosis import Diagnosis

_NETWORK = "Check endpoint_url (or AWS_ENDPOINT_URL), the network, and the store."
_CERTIFICATES = "Name the PEM file of the certificates to trust: storage.ca_bundle, or AWS_CA_BUNDLE."
_RIGHTS = "Check the credentials and what they may do with this bucket."
_NO_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or an instance role; for a public bucket set "
    "storage.anonymous, or AWS_SKIP_SIGNATURE=true."
)
_ROUTE = "Check region (or AWS_REGION) and endpoint_url: the bucket is somewhere else."

_RENEW = {
    "ExpiredToken": "Renew the credentials.",
    "ExpiredTokenException": "Renew the credentials.",
    "RequestExpired": "Renew the credentials, and check this machine's clock.",
    "TokenRefreshRequired": "Renew the credentials.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
}
"""Codes that end when credentials are renewed or a clock is set, as by an agent that runs beside."""
_LOAD = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequests", "RequestLimitExceeded"),
    *("RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "Busy", "IncompleteBody"),
    *("OperationAborted", "ConditionalRequestConflict", "PriorRequestNotComplete"),
}
"""Codes by which a store says: later. Each comes with some 4xx status from one server or another."""
_LATER_STATUS = {408, 425, 429}
_NEVER_STATUS = {501, 505}
"""Of 5xx statuses those that will not change."""
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_REMEDIES = {
    "NoSuchBucket": "Create the bucket or correct its name.",
    "NoSuchUpload": "The unfinished upload was removed meanwhile.",
    "PreconditionFailed": "Another writer was first; choose another address or delete what is there.",
    "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY.",
    "InvalidRange": "The object is shorter than the range asked for.",
    "PermanentRedirect": _ROUTE,
    "AuthorizationHeaderMalformed": _ROUTE,
    "403": _RIGHTS,
    "AccessDenied": _RIGHTS,
}
_CLOSED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
}
"""Codes that every request would get."""
_BROKEN = (aws.IncompleteReadError, aws.ChecksumError, aws.FlexibleChecksumError, ResponseParserError)
"""An answer that did not arrive as it was sent."""
_TEXT_CODE = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_TEXT_STATUS = re.compile(r"non-2xx status code: (\d{3}) ?([^:\n]*)")
_TEXT_SYSTEM = re.compile(
    r'message: "([^"]+)"|error: "([^"]+)"|\b(TimedOut|IncompleteMessage|UnexpectedEof|IncompleteBody)\b'
)


def no_upload(error: aws.ClientError) -> bool:
    """Whether a store says that an unfinished upload is none of its any more. An answer that was cut short has its status as its code."""
    return error.response.get("Error", {}).get("Code") in ("NoSuchUpload", "404")


def diagnose(error: BaseException) -> Diagnosis | None:
    """What an error of boto3, botocore, urllib3 or obstore means; None for any other error."""
    if isinstance(error, aws.ClientError):
        details = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _of_answer(str(details.get("Code", "unknown")), str(details.get("Message", "")), status)
    if isinstance(error, obstore.exceptions.BaseError) or (
        isinstance(error, FileNotFoundError) and error.errno is None
    ):
        return _of_obstore(error)
    if isinstance(error, aws.NoCredentialsError):
        return Diagnosis(str(error), _NO_CREDENTIALS, "passing" if _role_expected() else "closed", credentials=True)
    if isinstance(error, aws.CredentialRetrievalError | aws.MetadataRetrievalError | aws.TokenRetrievalError):
        return Diagnosis(f"{type(error).__name__}: {error}", _NO_CREDENTIALS, "passing", credentials=True)
    if isinstance(error, aws.PartialCredentialsError):
        return Diagnosis(str(error), _NO_CREDENTIALS, "closed")
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, _BROKEN):
        return Diagnosis(cause, "Check the network, and what stands between here and the store.", "passing")
    if isinstance(error, aws.HTTPClientError | aws.ConnectionError | urllib3.exceptions.HTTPError):
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            return Diagnosis(cause, _CERTIFICATES, "closed")
        if isinstance(error, aws.ProxyConnectionError | urllib3.exceptions.ProxyError):
            return Diagnosis(cause, "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY.", "passing")
        return Diagnosis(cause, _NETWORK, "passing")
    if isinstance(error, aws.BotoCoreError | boto3.exceptions.Boto3Error):
        inner = error.__cause__ or error.__context__
        return (inner is not None and diagnose(inner)) or Diagnosis(cause)
    return None


def _of_answer(code: str, message: str, status: int | None) -> Diagnosis:
    """Of an answer's error code and status; a HEAD's answer has its status for a code."""
    if code in _ABSENT:
        return Diagnosis("no such object", "Check the bucket and the key.", "missing")
    cause = f"{code}: {message}".rstrip(": ")
    if code in _RENEW:
        return Diagnosis(cause, _RENEW[code], "passing", credentials=True)
    later = status is not None and (status in _LATER_STATUS or (status >= 500 and status not in _NEVER_STATUS))
    if later or code in _LOAD:
        cause = cause if status is None or code == str(status) else f"{status} {cause}"
        return Diagnosis(cause, "The store is overloaded or down: check it.", "passing")
    remedy = _REMEDIES.get(code) or _REMEDIES.get(str(status), "")
    return Diagnosis(cause, remedy, "closed" if code in _CLOSED else "refused")


def _of_obstore(error: BaseException) -> Diagnosis:
    """obstore tells what the store said in its text alone."""
    said, _, debug = str(error).partition("\n\nDebug source")
    answer, status = _TEXT_CODE.search(said), _TEXT_STATUS.search(said)
    if answer or status:
        code = answer[1] if answer else status[1] if status else ""
        message = (answer[2] if answer else status[2] if status else "") or ""
        return _of_answer(code, message, int(status[1]) if status else None)
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError):
        return _of_answer("404", "", 404)
    if "Received redirect" in said:
        return Diagnosis(said, _ROUTE, "closed")
    if "non-partial response" in said:
        return Diagnosis(said, "The store does not serve ranges of objects, which are needed to read from it.")
    if "InvalidCertificate" in debug:
        return Diagnosis("the store's certificate is not trusted", _CERTIFICATES, "closed")
    if "Credential" in said or "Credential" in debug:
        return Diagnosis(said, _NO_CREDENTIALS, "passing", credentials=True)
    if isinstance(error, obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError):
        return Diagnosis(said, _RIGHTS)
    if "HTTP error" in said:
        found = [next(filter(None, match)) for match in _TEXT_SYSTEM.findall(debug)]
        return Diagnosis(": ".join(["connection failed", *found[-1:]]), _NETWORK, "passing")
    return Diagnosis(said)


@functools.cache
def _role_expected() -> bool:
    """Whether this machine or pod gives credentials to its processes, so that they may come though there are none yet."""
    given = (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    )
    if any(os.environ.get(name) for name in given):
        return True
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    try:
        return "Amazon EC2" in Path("/sys/class/dmi/id/sys_vendor").read_text()
    except OSError:
        return False
