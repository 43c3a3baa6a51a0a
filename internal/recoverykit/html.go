package recoverykit

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"

	"lifeboat/docs"
)

var (
	//go:embed page.html.tmpl
	pageText string
	//go:embed page.css
	pageStyle string

	pageTemplate = template.Must(template.New("page").Parse(pageText))
)

// section is one document as HTML.
type section struct {
	ID, Class string
	Body      template.HTML
}

// render makes one HTML document of Markdown pages, in their order. It needs
// nothing from outside itself. Links between the pages become links within it;
// those to documents that are not in it become plain text.
func render(title string, pages []docs.Page) ([]byte, error) {
	prefixes := map[string]string{}
	for i, page := range pages {
		prefixes[page.Name] = fmt.Sprintf("p%d-", i)
	}
	var sections []section
	for _, page := range pages {
		prefix := prefixes[page.Name]
		// Raw HTML in Markdown is left out by goldmark's renderer.
		markdown := goldmark.New(goldmark.WithExtensions(extension.Table), goldmark.WithParserOptions(
			parser.WithAutoHeadingID(), parser.WithASTTransformers(util.Prioritized(relinker{prefix, prefixes}, 100)),
		))
		var b bytes.Buffer
		if err := markdown.Convert([]byte(page.Text), &b, parser.WithContext(parser.NewContext(parser.WithIDs(&ids{prefix: prefix})))); err != nil {
			return nil, fmt.Errorf("render %s: %w", page.Name, err)
		}
		sections = append(sections, section{ID: prefix, Class: strings.TrimSuffix(page.Name, ".md"), Body: template.HTML(b.String())})
	}
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, struct {
		Title    string
		Style    template.CSS
		Sections []section
	}{title, template.CSS(pageStyle), sections})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", HTMLFile, err)
	}
	return b.Bytes(), nil
}

// ids names headings as GitHub does, so that a link in a document leads to the
// same place in both, with what tells the pages of one kit apart.
type ids struct {
	prefix string
	taken  map[string]int
}

func (i *ids) Generate(heading []byte, _ ast.NodeKind) []byte {
	slug := slug(string(heading))
	if i.taken == nil {
		i.taken = map[string]int{}
	}
	i.taken[slug]++
	if n := i.taken[slug]; n > 1 {
		slug = fmt.Sprintf("%s-%d", slug, n-1)
	}
	return []byte(i.prefix + slug)
}

func (i *ids) Put([]byte) {}

// slug is GitHub's anchor of a heading.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r == ' ':
			return '-'
		}
		return -1
	}, strings.ToLower(strings.TrimSpace(heading)))
}

// relinker turns links of documents into links of the kit.
type relinker struct {
	prefix   string            // of the page that is parsed
	prefixes map[string]string // of all pages, by their file's name
}

func (r relinker) Transform(document *ast.Document, _ text.Reader, _ parser.Context) {
	var outside []*ast.Link
	_ = ast.Walk(document, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		link, ok := n.(*ast.Link)
		if !ok || !entering {
			return ast.WalkContinue, nil
		}
		file, anchor, _ := strings.Cut(string(link.Destination), "#")
		prefix, known := r.prefixes[file]
		switch {
		case file == "":
			link.Destination = []byte("#" + r.prefix + anchor)
		case known:
			link.Destination = []byte("#" + prefix + anchor)
		case !strings.Contains(file, "://"):
			outside = append(outside, link)
		}
		return ast.WalkContinue, nil
	})
	for _, link := range outside { // its text stays
		parent := link.Parent()
		for child := link.FirstChild(); child != nil; child = link.FirstChild() {
			parent.InsertBefore(parent, link, child)
		}
		parent.RemoveChild(parent, link)
	}
}
