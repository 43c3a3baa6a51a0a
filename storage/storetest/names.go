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
		"con/nul.txt",
		strings.Repeat("abcdefghi/", 89) + "0123456789",
		"a/" + strings.Repeat("b", 255),
	}
}
