package config

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Render writes a configuration with every key live and commented, one key a
// line, lists in block style. Parse reads it back to the same value.
func Render(c *Config) ([]byte, error) {
	var b strings.Builder
	b.WriteString("# Configuration of lifeboat. Every key stands here with its value; an unknown\n# key is an error. Relative paths are relative to this file.\n")
	if err := renderStruct(&b, reflect.ValueOf(*c), ""); err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	return []byte(b.String()), nil
}

// renderStruct writes the fields of v. The first line begins where the cursor
// is; the others are indented.
func renderStruct(b *strings.Builder, v reflect.Value, indent string) error {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if i > 0 {
			b.WriteString(indent)
		}
		if err := renderField(b, field.Tag.Get("yaml"), field.Tag.Get("doc"), v.Field(i), indent); err != nil {
			return err
		}
	}
	return nil
}

func renderField(b *strings.Builder, key, doc string, v reflect.Value, indent string) error {
	switch {
	case v.Kind() == reflect.Struct:
		fmt.Fprintf(b, "%s: # %s\n%s  ", key, doc, indent)
		return renderStruct(b, v, indent+"  ")
	case v.Kind() == reflect.Slice && v.Len() == 0:
		fmt.Fprintf(b, "%s: [] # %s\n", key, doc)
	case v.Kind() == reflect.Slice:
		fmt.Fprintf(b, "%s: # %s\n", key, doc)
		for i := range v.Len() {
			fmt.Fprintf(b, "%s  - ", indent)
			if item := v.Index(i); item.Kind() == reflect.Struct {
				if err := renderStruct(b, item, indent+"    "); err != nil {
					return err
				}
			} else if err := renderScalar(b, item, ""); err != nil {
				return err
			}
		}
	default:
		fmt.Fprintf(b, "%s: ", key)
		return renderScalar(b, v, " # "+doc)
	}
	return nil
}

func renderScalar(b *strings.Builder, v reflect.Value, comment string) error {
	text, err := yaml.Marshal(v.Interface())
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "%s%s\n", strings.TrimRight(string(text), "\n"), comment)
	return nil
}
