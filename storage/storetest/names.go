package storetest

import "strings"

// InvalidNames are object names that every store refuses, by what is wrong with
// them.
func InvalidNames() map[string]string {
	return map[string]string{
		"an empty name":                     "",
		"the root":                          "/",
		"an absolute name":                  "/etc/passwd",
		"the folder itself":                 ".",
		"the folder above":                  "..",
		"a way out":                         "../x",
		"a way out and in":                  "../data/x",
		"a way out in the middle":           "a/../../x",
		"a way out at the end":              "a/..",
		"a dot in the middle":               "a/./b",
		"a dot at the end":                  "a/.",
		"a dot at the front":                "./a",
		"an empty element":                  "a//b",
		"a slash at the end":                "a/",
		"a backslash":                       `a\b`,
		"a way out by backslash":            `..\x`,
		"a NUL":                             "a\x00b",
		"a line feed":                       "a\nb",
		"a tabulator":                       "a\tb",
		"an escape":                         "a\x1b[31mb",
		"a delete sign":                     "a\x7fb",
		"a control sequence of one sign":    "a\u009b31mb",
		"a next line":                       "a\u0085b",
		"a line separator":                  "a\u2028b",
		"a paragraph separator":             "a\u2029b",
		"a turn of direction":               "a\u202etxt.exe",
		"an isolated direction":             "a\u2066b",
		"a direction mark":                  "a\u200fb",
		"a space of no width":               "a\u200bb",
		"a byte order mark":                 "\ufeffa",
		"a sign of private use":             "a\ue000b",
		"bytes that are no UTF-8":           "a\xffb",
		"half a UTF-8 sign":                 "a\xc3",
		"more than 900 bytes":               strings.Repeat("abcdefghi/", 90) + "x",
		"an element of more than 255 bytes": "a/" + strings.Repeat("b", 256),
	}
}

// ValidNames are object names that every store accepts, the odd ones among
// them.
func ValidNames() []string {
	return []string{
		"a",
		"...",
		"..a",
		"a..",
		".hidden",
		"a/.../b",
		"a b",
		" a",
		"a ",
		"-rf",
		"a+b%2Fc%00",
		"a:b*c?d\"e<f>g|h",
		"ü/日本/🛟",
		"שלום/u\u0308/a\u00a0b",
		"con/nul.txt",
		strings.Repeat("abcdefghi/", 89) + "0123456789",
		"a/" + strings.Repeat("b", 255),
	}
}
