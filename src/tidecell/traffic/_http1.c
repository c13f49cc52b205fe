/* What the router scans byte by byte, for speed only: http1.py holds the rules and decides everything here again.
 *
 * Each function knows the common, well-formed case and answers None (or stops) at anything else; the caller then
 * uses its Python twin, which accepts, waits or refuses. So nothing is refused here, and whatever is accepted here
 * must mean the same to the twin: tests/property/test_traffic_twins.py compares the two on generated input.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define MAX_HEAD 65536
#define MAX_TARGET 16384
#define MAX_FIELDS 128
#define MAX_FORWARD (MAX_HEAD + 2 * MAX_FIELDS)
#define MAX_DEPTH 64

/* 1: token character; 2: may stand in a field's value; 4: in a host; 8: visible (in a target) */
static unsigned char KIND[256];
static unsigned char LOWER[256];
static PyObject *request_type, *response_type, *empty;

static void fill_tables(void) {
    for (int c = 0; c < 256; c++) {
        unsigned char kind = 0;
        int alnum = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (alnum || (c && strchr("!#$%&'*+-.^_`|~", c))) kind |= 1;
        if (c == '\t' || (c >= 0x20 && c <= 0x7e) || c >= 0x80) kind |= 2;
        if (alnum || (c && strchr("-._~%!$&'()*+,;=:[]", c))) kind |= 4;
        if (c >= 0x21 && c <= 0x7e) kind |= 8;
        KIND[c] = kind;
        LOWER[c] = (c >= 'A' && c <= 'Z') ? c + 32 : c;
    }
}

typedef struct {
    const char *name, *value; /* the name as it was sent */
    Py_ssize_t name_len, value_len;
} Field;

/* Reads one field line at *at; 1: a field, 0: the empty line, -1: not for us. */
static int next_field(const char *data, Py_ssize_t end, Py_ssize_t *at, Field *field) {
    Py_ssize_t i = *at;
    if (end - i < 2) return -1;
    if (data[i] == '\r') {
        if (data[i + 1] != '\n') return -1;
        *at = i + 2;
        return 0;
    }
    field->name = data + i;
    while (i < end && (KIND[(unsigned char)data[i]] & 1)) i++;
    field->name_len = data + i - field->name;
    if (field->name_len == 0 || i >= end || data[i] != ':') return -1;
    i++;
    Py_ssize_t begin = i;
    while (i < end && (KIND[(unsigned char)data[i]] & 2)) i++;
    if (end - i < 2 || data[i] != '\r' || data[i + 1] != '\n') return -1;
    Py_ssize_t stop = i;
    while (begin < stop && (data[begin] == ' ' || data[begin] == '\t')) begin++;
    while (stop > begin && (data[stop - 1] == ' ' || data[stop - 1] == '\t')) stop--;
    field->value = data + begin;
    field->value_len = stop - begin;
    *at = i + 2;
    return 1;
}

static int same(const char *text, Py_ssize_t len, const char *lower) {
    if ((size_t)len != strlen(lower)) return 0;
    for (Py_ssize_t i = 0; i < len; i++)
        if (LOWER[(unsigned char)text[i]] != (unsigned char)lower[i]) return 0;
    return 1;
}

#define IS(field, lower) same((field).name, (field).name_len, lower)

static char *put(char *to, const Field *field) {
    for (Py_ssize_t i = 0; i < field->name_len; i++) *to++ = LOWER[(unsigned char)field->name[i]];
    *to++ = ':';
    *to++ = ' ';
    memcpy(to, field->value, field->value_len);
    to += field->value_len;
    *to++ = '\r';
    *to++ = '\n';
    return to;
}

/* Digits only, at most 18; -1 otherwise. */
static long long number(const char *text, Py_ssize_t len) {
    long long value = 0;
    if (len < 1 || len > 18) return -1;
    for (Py_ssize_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        value = value * 10 + (text[i] - '0');
    }
    return value;
}

/* What Connection says: 1 keep-alive, 0 close, -1 anything else. */
static int persistence(const Field *field) {
    if (same(field->value, field->value_len, "keep-alive")) return 1;
    if (same(field->value, field->value_len, "close")) return 0;
    return -1;
}

/* Fields that end at the router whatever Connection says; a field named like an option of Connection is left to
 * the twin. Returns 1: dropped, 0: not, -1: for the twin. */
static int is_hop_by_hop(const Field *f) {
    switch (f->name_len) {
    case 2: return IS(*f, "te");
    case 5: return IS(*f, "close") ? -1 : 0;
    case 7: return IS(*f, "upgrade") ? -1 : 0;
    case 10: return IS(*f, "keep-alive");
    case 16: return IS(*f, "proxy-connection");
    case 18: return IS(*f, "proxy-authenticate");
    case 19: return IS(*f, "proxy-authorization");
    default: return 0;
    }
}

static PyObject *bytes_of(const char *text, Py_ssize_t len) {
    return PyBytes_FromStringAndSize(text, len);
}

typedef struct {
    Field host, authorization, request_id;
    long long length;
    int keep_alive, has_connection;
    char *to; /* end of what is forwarded */
} Request;

/* 1: taken, -1: for the twin */
static int take_request_field(Request *r, const Field *f) {
    switch (f->name_len) {
    case 4:
        if (IS(*f, "host")) {
            if (r->host.name) return -1;
            for (Py_ssize_t i = 0; i < f->value_len; i++)
                if (!(KIND[(unsigned char)f->value[i]] & 4)) return -1;
            r->host = *f;
        }
        break;
    case 6:
        if (IS(*f, "expect")) return -1;
        break;
    case 7:
        if (IS(*f, "trailer")) return 1;
        break;
    case 10:
        if (IS(*f, "connection")) {
            if (r->has_connection) return -1;
            r->has_connection = 1;
            r->keep_alive = persistence(f);
            return r->keep_alive < 0 ? -1 : 1;
        }
        break;
    case 12:
        if (IS(*f, "x-request-id")) {
            if (r->request_id.name) return -1;
            r->request_id = *f;
            return 1;
        }
        break;
    case 13:
        if (IS(*f, "authorization")) {
            if (r->authorization.name) return -1;
            r->authorization = *f;
            return 1;
        }
        break;
    case 14:
        if (IS(*f, "content-length")) {
            if (r->length >= 0 || (r->length = number(f->value, f->value_len)) < 0) return -1;
            return 1;
        }
        break;
    case 17:
        if (IS(*f, "transfer-encoding")) return -1;
        break;
    }
    int dropped = is_hop_by_hop(f);
    if (dropped == 0) r->to = put(r->to, f);
    return dropped < 0 ? -1 : 1;
}

static PyObject *value_of(const Field *f) {
    return f->name ? bytes_of(f->value, f->value_len) : Py_NewRef(empty);
}

static PyObject *make_request(const char *data, Py_ssize_t method_len, Py_ssize_t target, Py_ssize_t target_len,
                              const Request *r, const char *forward, Py_ssize_t size) {
    PyObject *args[12] = {
        bytes_of(data, method_len), bytes_of(data + target, target_len), value_of(&r->host),
        PyLong_FromLongLong(r->length < 0 ? 0 : r->length), PyBool_FromLong(r->keep_alive), Py_NewRef(Py_False),
        Py_NewRef(empty), Py_NewRef(Py_False), value_of(&r->authorization), value_of(&r->request_id),
        bytes_of(forward, r->to - forward), PyLong_FromSsize_t(size),
    };
    PyObject *made = NULL;
    int complete = 1;
    for (int i = 0; i < 12; i++) complete = complete && args[i];
    if (complete) made = PyObject_Vectorcall(request_type, args, 12, NULL);
    for (int i = 0; i < 12; i++) Py_XDECREF(args[i]);
    return made;
}

PyDoc_STRVAR(parse_request_doc, "parse_request(data) -> RequestHead of a plain HTTP/1.1 head at the start, or None");

static PyObject *parse_request(PyObject *self, PyObject *arg) {
    char forward[MAX_FORWARD];
    if (!PyBytes_Check(arg)) return PyErr_Format(PyExc_TypeError, "bytes are needed");
    const char *data = PyBytes_AS_STRING(arg);
    Py_ssize_t end = PyBytes_GET_SIZE(arg), at = 0, count = 0;
    if (end > MAX_HEAD) end = MAX_HEAD;
    while (at < end && (KIND[(unsigned char)data[at]] & 1)) at++;
    Py_ssize_t method_len = at, target = at + 1;
    if (method_len == 0 || target >= end || data[at] != ' ' || data[target] != '/') Py_RETURN_NONE;
    at = target;
    while (at < end && (KIND[(unsigned char)data[at]] & 8) && data[at] != '#') at++;
    Py_ssize_t target_len = at - target;
    if (target_len > MAX_TARGET || end - at < 11 || memcmp(data + at, " HTTP/1.1\r\n", 11)) Py_RETURN_NONE;
    at += 11;
    Request r = {.length = -1, .keep_alive = 1, .to = forward};
    Field field;
    int more;
    while ((more = next_field(data, end, &at, &field)) == 1)
        if (++count > MAX_FIELDS || take_request_field(&r, &field) < 0) Py_RETURN_NONE;
    if (more < 0 || r.host.name == NULL) Py_RETURN_NONE;
    if (method_len == 7 && !memcmp(data, "CONNECT", 7)) Py_RETURN_NONE;
    return make_request(data, method_len, target, target_len, &r, forward, at);
}

PyDoc_STRVAR(parse_response_doc,
             "parse_response(data, is_head) -> ResponseHead of a plain final HTTP/1.1 head at the start, or None");

static PyObject *parse_response(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    char forward[MAX_FORWARD];
    if (nargs != 2 || !PyBytes_Check(args[0])) return PyErr_Format(PyExc_TypeError, "bytes and a bool are needed");
    const char *data = PyBytes_AS_STRING(args[0]);
    Py_ssize_t end = PyBytes_GET_SIZE(args[0]), at = 12, count = 0;
    int is_head = args[1] == Py_True;
    if (end > MAX_HEAD) end = MAX_HEAD;
    if (end < 16 || memcmp(data, "HTTP/1.1 ", 9)) Py_RETURN_NONE;
    long long status = number(data + 9, 3);
    if (status < 200) Py_RETURN_NONE;
    if (data[at] == ' ') {
        at++;
        while (at < end && (KIND[(unsigned char)data[at]] & 2)) at++;
    }
    if (end - at < 2 || data[at] != '\r' || data[at + 1] != '\n') Py_RETURN_NONE;
    Py_ssize_t line_len = at;
    at += 2;
    long long length = -2;
    int keep_alive = 1, has_connection = 0, has_id = 0, more;
    char *to = forward;
    Field field;
    while ((more = next_field(data, end, &at, &field)) == 1) {
        if (++count > MAX_FIELDS) Py_RETURN_NONE;
        switch (field.name_len) {
        case 4:
            if (IS(field, "host")) Py_RETURN_NONE;
            break;
        case 6:
            if (IS(field, "expect")) Py_RETURN_NONE;
            break;
        case 10:
            if (IS(field, "connection")) {
                if (has_connection) Py_RETURN_NONE;
                has_connection = 1;
                if ((keep_alive = persistence(&field)) < 0) Py_RETURN_NONE;
                continue;
            }
            break;
        case 12:
            if (IS(field, "x-request-id")) has_id = 1;
            break;
        case 13:
            if (IS(field, "authorization")) Py_RETURN_NONE;
            break;
        case 14:
            if (IS(field, "content-length")) {
                if (length != -2 || (length = number(field.value, field.value_len)) < 0) Py_RETURN_NONE;
            }
            break;
        case 17:
            if (IS(field, "transfer-encoding")) {
                if (length != -2 || !same(field.value, field.value_len, "chunked")) Py_RETURN_NONE;
                length = -1;
            }
            break;
        }
        int dropped = is_hop_by_hop(&field);
        if (dropped < 0) Py_RETURN_NONE;
        if (dropped == 0) to = put(to, &field);
    }
    if (more < 0) Py_RETURN_NONE;
    if (is_head || status == 204 || status == 304) length = 0;
    PyObject *made[7] = {
        PyLong_FromLongLong(status), bytes_of(data, line_len), PyLong_FromLongLong(length),
        PyBool_FromLong(keep_alive && length != -2), PyBool_FromLong(has_id), bytes_of(forward, to - forward),
        PyLong_FromSsize_t(at),
    };
    PyObject *head = NULL;
    int complete = 1;
    for (int i = 0; i < 7; i++) complete = complete && made[i];
    if (complete) head = PyObject_Vectorcall(response_type, made, 7, NULL);
    for (int i = 0; i < 7; i++) Py_XDECREF(made[i]);
    return head;
}

PyDoc_STRVAR(skip_chunks_doc, "skip_chunks(data, at) -> index after the complete plain chunks that begin at `at`");

static PyObject *skip_chunks(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyBytes_Check(args[0])) return PyErr_Format(PyExc_TypeError, "bytes and an index are needed");
    const char *data = PyBytes_AS_STRING(args[0]);
    Py_ssize_t end = PyBytes_GET_SIZE(args[0]), at = PyLong_AsSsize_t(args[1]);
    if (at < 0) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "a negative index");
    while (at < end) {
        Py_ssize_t i = at, size = 0;
        for (; i < end && i - at < 8; i++) {
            char c = data[i];
            if (c >= '0' && c <= '9') size = size * 16 + (c - '0');
            else if (c >= 'a' && c <= 'f') size = size * 16 + (c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') size = size * 16 + (c - 'A' + 10);
            else break;
        }
        if (i == at || size == 0 || end - i < 4 || data[i] != '\r' || data[i + 1] != '\n') break;
        if (size > end - i - 4) break;
        i += 2 + size;
        if (data[i] != '\r' || data[i + 1] != '\n') break;
        at = i + 2;
    }
    return PyLong_FromSsize_t(at);
}

/* --- JSON: the few top-level fields that routing needs, the rest checked and skipped --- */

typedef struct {
    const unsigned char *at, *end;
} Cursor;

static void space(Cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t')) c->at++;
}

/* Moves over characters that need no look: none of '"', '\\' and the control characters. */
static const unsigned char *plain(const unsigned char *at, const unsigned char *end) {
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), limit = _mm_set1_epi8(0x1f);
    while (end - at >= 16) {
        __m128i block = _mm_loadu_si128((const __m128i *)at);
        __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(block, limit), block);
        __m128i hit = _mm_or_si128(low, _mm_or_si128(_mm_cmpeq_epi8(block, quote), _mm_cmpeq_epi8(block, slash)));
        int mask = _mm_movemask_epi8(hit);
        if (mask) return at + __builtin_ctz(mask);
        at += 16;
    }
#endif
    while (at < end && *at != '"' && *at != '\\' && *at > 0x1f) at++;
    return at;
}

/* At the opening quote; 1: moved past the closing one, *escaped says whether there was a backslash. */
static int string(Cursor *c, int *escaped) {
    *escaped = 0;
    if (c->at >= c->end || *c->at != '"') return 0;
    c->at++;
    for (;;) {
        c->at = plain(c->at, c->end);
        if (c->at >= c->end || *c->at <= 0x1f) return 0;
        if (*c->at++ == '"') return 1;
        *escaped = 1;
        if (c->at >= c->end || *c->at == 0 || !strchr("\"\\/bfnrt", *c->at)) return 0; /* \u: the twin's */
        c->at++;
    }
}

static int digits(Cursor *c) {
    const unsigned char *begin = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') c->at++;
    return c->at > begin;
}

static int number_value(Cursor *c) {
    if (c->at < c->end && *c->at == '-') c->at++;
    if (c->at < c->end && *c->at == '0') c->at++;
    else if (!digits(c)) return 0;
    if (c->at < c->end && *c->at == '.') {
        c->at++;
        if (!digits(c)) return 0;
    }
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        c->at++;
        if (c->at < c->end && (*c->at == '+' || *c->at == '-')) c->at++;
        if (!digits(c)) return 0;
    }
    return 1;
}

static int word(Cursor *c, const char *text) {
    size_t len = strlen(text);
    if ((size_t)(c->end - c->at) < len || memcmp(c->at, text, len)) return 0;
    c->at += len;
    return 1;
}

static int value(Cursor *c, int depth);

static int members(Cursor *c, int depth, unsigned char close) {
    int escaped;
    c->at++;
    space(c);
    if (c->at < c->end && *c->at == close) {
        c->at++;
        return 1;
    }
    for (;;) {
        if (close == '}') {
            space(c);
            if (!string(c, &escaped)) return 0;
            space(c);
            if (c->at >= c->end || *c->at++ != ':') return 0;
        }
        if (!value(c, depth)) return 0;
        space(c);
        if (c->at >= c->end) return 0;
        if (*c->at == close) {
            c->at++;
            return 1;
        }
        if (*c->at++ != ',') return 0;
    }
}

static int value(Cursor *c, int depth) {
    int escaped;
    if (depth > MAX_DEPTH) return 0;
    space(c);
    if (c->at >= c->end) return 0;
    switch (*c->at) {
    case '"': return string(c, &escaped);
    case '{': return members(c, depth + 1, '}');
    case '[': return members(c, depth + 1, ']');
    case 't': return word(c, "true");
    case 'f': return word(c, "false");
    case 'n': return word(c, "null");
    default: return number_value(c);
    }
}

static PyObject *text_of(Cursor *c) {
    int escaped;
    const unsigned char *begin = c->at + 1;
    if (!string(c, &escaped) || escaped) return NULL;
    for (const unsigned char *i = begin; i < c->at; i++)
        if (*i >= 0x80) return NULL;
    return PyUnicode_DecodeASCII((const char *)begin, c->at - begin - 1, NULL);
}

#define KEY(name) (len == sizeof(name) - 1 && !memcmp(key, name, sizeof(name) - 1))

PyDoc_STRVAR(scan_body_doc, "scan_body(body) -> (model, stream, max_tokens, user) of a plain JSON object, or None");

/* found: 0 model, 1 stream, 2 max_tokens, 3 max_completion_tokens, 4 user. Returns 0 where the twin has to look. */
static int scan_member(Cursor *c, PyObject *found[5]) {
    int escaped, which;
    const char *key = (const char *)c->at + 1;
    if (!string(c, &escaped) || escaped) return 0;
    Py_ssize_t len = (const char *)c->at - key - 1;
    if (KEY("model")) which = 0;
    else if (KEY("stream")) which = 1;
    else if (KEY("max_tokens")) which = 2;
    else if (KEY("max_completion_tokens")) which = 3;
    else if (KEY("user")) which = 4;
    else which = -1;
    space(c);
    if (c->at >= c->end || *c->at++ != ':') return 0;
    if (which < 0) return value(c, 1);
    space(c);
    if (found[which] || c->at >= c->end) return 0;
    const unsigned char *begin = c->at;
    if (which == 0 || which == 4) found[which] = text_of(c);
    else if (which == 1) found[which] = word(c, "true") ? Py_NewRef(Py_True) : word(c, "false") ? Py_NewRef(Py_False) : NULL;
    else if (digits(c) && !(*begin == '0' && c->at - begin > 1) && (c->at == c->end || !strchr(".eE", *c->at)))
        found[which] = PyLong_FromLongLong(number((const char *)begin, c->at - begin));
    return found[which] != NULL;
}

static PyObject *scan_body(PyObject *self, PyObject *arg) {
    if (!PyBytes_Check(arg)) return PyErr_Format(PyExc_TypeError, "bytes are needed");
    Cursor c = {(const unsigned char *)PyBytes_AS_STRING(arg), NULL};
    c.end = c.at + PyBytes_GET_SIZE(arg);
    PyObject *found[5] = {NULL}, *result = NULL;
    space(&c);
    if (c.at >= c.end || *c.at++ != '{') goto twin;
    for (;;) {
        space(&c);
        if (!scan_member(&c, found)) goto twin;
        space(&c);
        if (c.at >= c.end) goto twin;
        if (*c.at == '}') break;
        if (*c.at++ != ',') goto twin;
    }
    c.at++;
    space(&c);
    if (c.at != c.end || found[0] == NULL) goto twin;
    if (found[2] && PyLong_AsLongLong(found[2]) < 0) goto twin;
    if (found[3] && PyLong_AsLongLong(found[3]) < 0) goto twin;
    PyObject *most = found[3] && PyObject_IsTrue(found[3]) ? found[3] : found[2];
    PyObject *zero = most ? NULL : PyLong_FromLong(0), *none = found[4] ? NULL : PyUnicode_FromString("");
    result = PyTuple_Pack(4, found[0], found[1] ? found[1] : Py_False, most ? most : zero, found[4] ? found[4] : none);
    Py_XDECREF(zero);
    Py_XDECREF(none);
twin:
    for (int i = 0; i < 5; i++) Py_XDECREF(found[i]);
    if (result == NULL && !PyErr_Occurred()) Py_RETURN_NONE;
    return result;
}

/* The number after `"name" :`, from at on; -1: none. As the twin's regular expressions find it. */
static long long count_after(const char *at, const char *end, const char *name) {
    Py_ssize_t len = strlen(name);
    while (end - at >= len && (at = memchr(at, '"', end - at - len + 1))) {
        const char *i = at + len;
        if (memcmp(at++, name, len)) continue;
        while (i < end && (*i == ' ' || (*i >= '\t' && *i <= '\r'))) i++;
        if (i >= end || *i++ != ':') continue;
        while (i < end && (*i == ' ' || (*i >= '\t' && *i <= '\r'))) i++;
        Py_ssize_t count = 0;
        while (count < 12 && i + count < end && i[count] >= '0' && i[count] <= '9') count++;
        if (count) return number(i, count);
    }
    return -1;
}

PyDoc_STRVAR(find_usage_doc, "find_usage(tail) -> (prompt tokens, completion tokens) after the last `\"usage\"`");

static PyObject *find_usage(PyObject *self, PyObject *arg) {
    if (!PyBytes_Check(arg)) return PyErr_Format(PyExc_TypeError, "bytes are needed");
    const char *data = PyBytes_AS_STRING(arg), *end = data + PyBytes_GET_SIZE(arg);
    for (const char *at = end - 7; at >= data && end - at <= 16384; at--) {
        if (*at != '"' || memcmp(at, "\"usage\"", 7)) continue;
        long long in = count_after(at, end, "\"prompt_tokens\""), out = count_after(at, end, "\"completion_tokens\"");
        if (in < 0 && out < 0) break;
        if (in < 0) return Py_BuildValue("OL", Py_None, out);
        if (out < 0) return Py_BuildValue("LO", in, Py_None);
        return Py_BuildValue("LL", in, out);
    }
    return Py_BuildValue("OO", Py_None, Py_None);
}

/* --- a line of the access log --- */

#define MAX_LINE 4096

typedef struct {
    char text[MAX_LINE];
    size_t len;
} Line;

static int add(Line *line, const char *text, size_t len) {
    if (len > MAX_LINE - line->len) return 0;
    memcpy(line->text + line->len, text, len);
    line->len += len;
    return 1;
}

static int add_text(Line *line, const char *text, Py_ssize_t len) {
    for (Py_ssize_t i = 0; i < len; i++)
        if (text[i] < 0x20 || text[i] == '"' || text[i] == '\\' || text[i] == 0x7f) return 0; /* signed: >= 0x80 too */
    return add(line, "\"", 1) && add(line, text, len) && add(line, "\"", 1);
}

/* Rounded as round() does; a shortest form ends in no zero but the one after the point. */
static int add_float(Line *line, double value, int places) {
    if (!(value > -1e12 && value < 1e12)) return 0;
    char *text = PyOS_double_to_string(value, 'f', places, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL) return 0;
    size_t len = strlen(text);
    while (len > 2 && text[len - 1] == '0' && text[len - 2] != '.') len--;
    int added = add(line, text, len);
    PyMem_Free(text);
    return added;
}

/* Bytes end at a '?': of a target the query is left out, and nothing else has one. */
static int add_value(Line *line, PyObject *value) {
    if (PyUnicode_CheckExact(value))
        return PyUnicode_IS_ASCII(value) && add_text(line, PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value));
    if (value == Py_None) return add(line, "null", 4);
    if (value == Py_True) return add(line, "true", 4);
    if (value == Py_False) return add(line, "false", 5);
    if (PyFloat_CheckExact(value)) return add_float(line, PyFloat_AS_DOUBLE(value), 3);
    if (PyBytes_CheckExact(value)) {
        const char *text = PyBytes_AS_STRING(value), *query = memchr(text, '?', PyBytes_GET_SIZE(value));
        return add_text(line, text, query ? query - text : PyBytes_GET_SIZE(value));
    }
    if (!PyLong_CheckExact(value)) return 0;
    char text[32];
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) return 0;
    return add(line, text, snprintf(text, sizeof text, "%lld", number));
}

PyDoc_STRVAR(log_line_doc, "log_line(names, entry, wall_s) -> one JSON object, its first value moved by wall_s, or None");

static PyObject *log_line(PyObject *self, PyObject *args) {
    PyObject *names, *entry;
    double wall_s;
    if (!PyArg_ParseTuple(args, "O!O!d", &PyTuple_Type, &names, &PyTuple_Type, &entry, &wall_s)) return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(entry);
    if (count == 0 || count != PyTuple_GET_SIZE(names) || !PyFloat_CheckExact(PyTuple_GET_ITEM(entry, 0))) Py_RETURN_NONE;
    Line line = {.len = 0};
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i), *value = PyTuple_GET_ITEM(entry, i);
        if (!PyBytes_CheckExact(name)) return PyErr_Format(PyExc_TypeError, "names are bytes");
        int added = add(&line, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name));
        added = added && (i ? add_value(&line, value) : add_float(&line, PyFloat_AS_DOUBLE(value) + wall_s, 6));
        if (!added) {
            PyErr_Clear(); /* whatever it was, the twin says */
            Py_RETURN_NONE;
        }
    }
    return PyBytes_FromStringAndSize(line.text, line.len);
}

static PyObject *use_types(PyObject *self, PyObject *args) {
    PyObject *request, *response;
    if (!PyArg_ParseTuple(args, "OO", &request, &response)) return NULL;
    Py_XSETREF(request_type, Py_NewRef(request));
    Py_XSETREF(response_type, Py_NewRef(response));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use_types", use_types, METH_VARARGS, "use_types(RequestHead, ResponseHead): what the parsers make"},
    {"parse_request", parse_request, METH_O, parse_request_doc},
    {"parse_response", (PyCFunction)(void (*)(void))parse_response, METH_FASTCALL, parse_response_doc},
    {"skip_chunks", (PyCFunction)(void (*)(void))skip_chunks, METH_FASTCALL, skip_chunks_doc},
    {"find_usage", find_usage, METH_O, find_usage_doc},
    {"scan_body", scan_body, METH_O, scan_body_doc},
    {"log_line", log_line, METH_VARARGS, log_line_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_http1", "Scanning for http1 and peek.", -1, methods};

/* Raised with every change of what Python calls or of the fields it gives; http1.py names the one it needs. */
#define INTERFACE 2

PyMODINIT_FUNC PyInit__http1(void) {
    PyObject *made;
    fill_tables();
    empty = PyBytes_FromStringAndSize(NULL, 0);
    made = empty ? PyModule_Create(&module) : NULL;
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE) < 0)
        Py_CLEAR(made);
    return made;
}
